"""What the gateway costs beside its peers, in one run on one machine: `make bench`, or `python -m bench`.

mock_engine.py   an OpenAI-compatible engine that costs nearly nothing
load.py          the load generator, and the figures of one measurement
processes.py     processes of ours: start, wait for their port, CPU and memory by /proc, stop
targets.py       what is loaded: found, started, answering
peers.py         all of them: slurmgate, vllm-router, sglang-router, nginx, LiteLLM's proxy, and no proxy at all
compare.py       everybody in short turns beside one another
estimates.py     ratios of pairs, and how sure they are (pure)
verdict.py       targets, and whether they are reached (pure)
report.py        tables, JSON
soak.py          `--soak`: memory over 300,000 requests
slow_streams.py  `--slow-streams`: 1,000 streams that are open at once
hung.py          `--hung`: one replica of three hangs
simulated_day.py `python -m bench.simulated_day`: a site's day, with the launcher's own decisions
engine_model.py  an engine's time, continuous batching (pure); engine_profiles.py its inputs; engine_users.py its users
engine_simulator.py   the same as an OpenAI-compatible server
experiment.py    `python -m bench.experiment`: four model sizes, directly and through the gateway (docs/experiment.md)
batches.py       `python -m bench.batches`: 50,000 lines; batch_latency.py what others notice; batch_client.py
tribunal_eval.py `python -m bench.tribunal_eval`: what a tribunal is worth; tribunal_members.py who sits in it
tribunal_overhead.py  `python -m bench.tribunal_overhead`: what it costs beyond its models
rolling.py, cold_start.py, reconcile.py   `make bench-slurm`, on a real Slurm: slurm_site.py, constant.py
sampling.py      `--profile`: py-spy on slurmgate under the same load
__main__.py      the one command

README.md says how to read the result.
"""
