"""`slurmgate bench MODEL`: what users of a model wait for, at 1, 2, 4 ... 128 of them, with the gateway and without.

command.py   the options                                             --> session.Options
session.py   one run: the measurement, Ctrl-C, what is shown and written; progress.py  the bar
warmup.py    first answers, or one sentence on why there is none; how many tokens words are
targets.py   where requests go, with which key: options, configuration, state directory --> Target
load.py      users: closed loops, in turns between the targets       --> Cell (samples)
asking.py    one request over HTTP, streamed or whole                --> Sample
prompts.py   synthetic prompts, their lengths (pure)
figures.py   percentiles, tokens per second, the gateway's share (pure)   Sample --> Figures, Share
show.py      the tables on the terminal, the JSON document (pure)
plot.py      the same as curves, PNG and SVG (matplotlib, the extra `plots`)

**Closed loop.** A user sends the next request when the answer to the last one is there, and does not wait in between:
the experiment of arXiv 2508.17814 ("concurrent users"). So the load falls when the engine slows down, and latencies are
those of N requests in flight. They are not those of an open arrival process at the same throughput, and nothing here
corrects for coordinated omission: no schedule of arrivals exists that could be missed.

**Beside one another.** At each number of users the targets are loaded in turns, and who begins changes from turn to
turn, so that a slow minute of the machine is slow for both. Lengths are the same for all targets, the words never: no
target profits from what another one left in the engine's prefix cache.
"""
