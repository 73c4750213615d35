"""More cores: N processes behind one port, and one that decides for all of them (`server.workers = N`).

    main process                                          a worker process, N times
    supervisor.py   sockets, starts, deaths, the end      worker.py   HTTP, keys, engines, streams, usage, log
    desk.py         answers one worker's questions <--->  remote_places.py, remote_limits.py, remote_control.py
        |                                        link.py      ask it, and look to the rest of the gateway like
        v                                                     what is there in a gateway of one process
    places, limits, launcher, reload

gateway.py        the composition root of main; __main__.py is that of a worker
remote_loans.py   seats that main has lent (backends/loans.py), and a worker gives out without a message
link.py           messages over a socket pair: numbered questions, many messages in one write
messages.py       values <-> JSON: wants, principals, errors, the configuration; pure
restarts.py       when a dead worker's place is taken again, and when that is in vain; pure
sockets.py        one listening socket for each worker, on one port
tally.py          metrics of all processes, those of dead ones included
lines.py          a log that several processes write

Main holds the state directory's lock, opens the port and never accepts: the kernel spreads connections over the
listening sockets (SO_REUSEPORT, socket(7)), each of which has one worker. Main keeps them all open, so connections that
wait at a dead worker's socket are the next one's. What a worker holds (seats, passes, places in line) main gives back
when their link closes, however that came; and a worker whose link closes ends.
"""
