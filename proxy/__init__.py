"""The gateway: OpenAI's HTTP interface in front of `backends`, and the command line.

client --> protocol.py    a connection: what is no safe HTTP, who sends too slowly, who has gone       heads.py
       --> middleware.py  request id, log line, every error in the OpenAI shape     record.py, trail.py, logging.py
       --> auth.py        key -> Principal                                          principals.py, keys.py, projects.py
       --> routes/*       the shape of a request -> Call                            bodies.py, forms.py, shapes.py
       --> dispatch.py    the only way to a model                                   limits/, accounting.py
       --> registry.py    public name -> Backend                                    providers.py
client <-- events.py      streams, signs of life in silence     replies.py  whole answers     writer.py  both, cheaply

serving.py         the half that answers: the routes over a registry of backends
control.py         what it asks of the half that decides
local_control.py   that half in this process: launcher, places, limits; launching.py, demand.py, engine_limits.py
app.py             the two joined: a gateway of one process; workers/ is one of several
reload.py          what a new configuration changes       operations.py   what operators ask and tell

translate/   /v1/responses and /v1/messages <-> chat, pure; stored_responses.py keeps what is to be kept,
             anthropic_errors.py gives errors of /v1/messages their shape
metrics/     numbers for Prometheus      tracing.py, spans.py  OpenTelemetry, if wanted     content.py  without privacy
files/       files and uploads       batch/   batches: asked for, stored, run, told of
tribunals.py the models that deliberate: children.py their calls, deliberations.py what is kept
openapi.py   the published description
config/      TOML -> frozen values, all mistakes at once, with their paths
server.py    uvicorn under uvloop; sockets, signals, the order of starting and stopping
state.py     the state directory and its lock          database.py  tables, migrations; SQLite or PostgreSQL
cli.py       serve, models, render, stop; cli_*.py the other commands; terminal.py what they share, gateway_client.py
             what those share that are a client of a gateway
benchmark/   `slurmgate bench`
embedded/    the default without a configuration: two small models of the project's own
"""
