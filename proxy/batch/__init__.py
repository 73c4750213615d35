"""Batches: a file of requests is run as a whole, when there is room for it, and nothing of it is ever lost.

routes/batches.py                   HTTP on one side
   --> service.Batches              what endpoints ask; whose batches, and which may be seen
runner.BatchRunner                  the worker in each process that serves; assembly.py makes it, wanted.py plans (pure)
   --> schedule.py, pace.py, rates.py   whose lines are next, and how many at once (pure)
   --> held.py, model_lanes.py, lanes.py    windows that this process has claimed, and the tasks that ask their lines
   --> line.Asking                  one line -> a Call -> the Dispatcher, as for everybody
   --> storage.py                   every verb of the store in a thread, again until it succeeds; results in groups
   --> steps.Steps                  a batch outside of its lines: validated, ended
        --> input.py                a checked file -> windows of lines that belong together
        --> output.py               results -> output and error file
webhooks.Notifier                   who is told of the end; webhook_rows.py, webhook_post.py

store.BatchStore, step_store.StepStore    the rows, each verb one transaction; rows.py, results.py, hot.py,
                                          leases.py (pure), census.py
values.py, asked.py                       Batch, its states, its card; what clients may ask (pure)

Asking an engine may happen twice, committing a result only once: there is a row for each line, its state leaves 0 once,
in the transaction that also counts it, and only under the epoch of its window's last claim. A worker that is killed
leaves claims that others take over when it is silent for `leases.LEASE_S`, or at once when the same gateway starts
again. The files at the end are made from the rows, under ids that were written down before. So whatever is killed, each
line of the input has one line in the output or the error file; those that a cancellation left unrun have none.
"""
