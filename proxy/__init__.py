"""The gateway: OpenAI's HTTP interface in front of `backends`, and the command line.

client --> middleware.py  request id, log line, every error in the OpenAI shape     logging.py, metrics.py
       --> auth.py        key -> Principal                                          keys.py (stored hashed)
       --> routes/*       the shape of a request -> Call
       --> dispatch.py    the only way to a model: registry, accounting, disconnects, the reply's bytes
       --> registry.py    public name -> Backend

config.py    TOML -> frozen values, all mistakes at once, with their paths
app.py       the one composition root: joins backends and slurm_launcher, starts and stops everything
server.py    uvicorn under uvloop; sockets, signals, the lock on the state directory
cli.py       serve, status, render, keys, stop
embedded/    the default without a configuration: two small models of the project's own
"""
