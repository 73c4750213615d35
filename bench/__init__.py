"""What the gateway costs beside its peers, in one run on one machine: `make bench`, or `python -m bench`.

mock_engine.py   an OpenAI-compatible engine that costs nearly nothing
load.py          the load generator, and the figures of one measurement
processes.py     processes of ours: start, wait for their port, CPU and memory by /proc, stop
peers.py         what is compared: slurmgate, nginx, vllm-router, and no proxy at all
report.py        tables
sampling.py      `--profile`: py-spy on slurmgate under the same load
__main__.py      the one command: everything in turn, medians over rounds

README.md says how to read the result.
"""
