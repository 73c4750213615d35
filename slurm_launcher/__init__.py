"""Inference engines as jobs: intent -> one loop -> sbatch, scancel.

    ModelSpec, Launch        spec.py       what to run, frozen; who it is
        |
        v
    render(...)              script.py     -> the batch script, pure; carries agent.py and a manifest inside
        |                    engines.py    argv, health and proof of each engine, pure; plugins.py adds others'
        |                    runtimes/     the container around an argv, one file each, pure
        |                    local_copy.py weights on the node's own disk; on_node.py one engine over several nodes
        v
    Cluster.submit           cluster.py    the contract: submit, cancel, jobs, ended; "could not ask" is never "gone"
        |                    slurm.py      ... by sbatch, squeue, scancel, sacct: the only caller of Slurm's commands
        |                    commands.py   their argv and the parsers of their output, pure
        |                    local.py      ... the same script as a plain process, no Slurm
        v
    agent.py                               in the job (stdlib only, Python 3.6+): port, engine, proof, reports, drain
        |  reports
        v
    Replica                  states.py     target, status, the one transition table; reports.py: what agents say
    reconcile(facts)         reconcile.py  facts -> actions, pure
        |                    observing.py  what the scheduler says -> replicas
        |                    wanting.py    who leaves, how many are missing, who goes
        |                    placing.py    which kind of replica the missing ones become
        |                    failing.py    when to try again, where not; diagnosis.py: why an engine ended
        |                    autoscale.py  demand -> how many there shall be
        v
    Launcher                 loop.py       makes the actions true; remembers in store.py; outlook.py: why not yet

    fit.py, fit_check.py     does a model fit into its GPUs: model_shape.py, engine_memory.py, gpus.py, weights.py
    fetching.py, hub.py      weights from the hub
    facilities.py            partitions, nodes, reservations as Slurm tells them, pure; versions.py: what commands lack
    doctor.py                what is wrong between a model and a cluster; node_visit.py, node_check.py: from a node

The agent's reports and the jobs' comments carry enough to adopt a replica that this process has never heard of, so what
store.py keeps is soft: losing it costs nothing but the history of failures.
"""
