"""The gateway: OpenAI's HTTP interface in front of `backends`, and the command line.

client --> protocol.py    a connection: what is no safe HTTP, who sends too slowly, who has gone
       --> middleware.py  request id, log line, every error in the OpenAI shape     record.py, logging.py, metrics.py
       --> auth.py        key -> its id                                             keys.py (stored hashed)
       --> routes/*       the shape of a request -> Call                            bodies.py, forms.py, shapes.py
       --> dispatch.py    the only way to a model                                   accounting.py
       --> registry.py    public name -> Backend                                    providers.py, engine_limits.py
client <-- events.py      streams, signs of life in silence     replies.py  whole answers     writer.py  both, cheaply

translate/   /v1/responses and /v1/messages <-> chat, pure; stored_responses.py keeps what is to be kept,
             anthropic_errors.py gives errors of /v1/messages their shape
openapi.py   the published description
config.py    TOML -> frozen values, all mistakes at once, with their paths
app.py       the one composition root: joins backends and slurm_launcher, starts and stops everything
server.py    uvicorn under uvloop; sockets, signals, the order of starting and stopping
state.py     the state directory and its lock          database.py  keys, usage, stored responses: tables, migrations
cli.py       serve, status, render, keys, stop, models
embedded/    the default without a configuration: two small models of the project's own
"""
