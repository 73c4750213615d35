"""Files and uploads: bytes on disk, rows in the database. What batches read and write is here, too.

routes/files.py, routes/uploads.py      HTTP on one side
   --> service.Files      what endpoints and batches ask: each verb whole      assembly.Uploads   files in parts
     --> workshop.py      threads, room, bytes on their way: off the event loop
        --> form.py       a multipart form, read piece by piece, its file straight to disk      body.py  those pieces
        --> disk.py       bytes: written aside, synced, put in place whole; read; removed
        --> store.py      rows of files: whose, until when; the quota's last word
        --> uploads.py    rows of uploads and their parts
        --> quota.py      room, promised before bytes are taken
   sweep.py               what is past its time, and what a killed process left

values.py         File, Upload, Part; what clients may say of them (pure)
ranges.py         `Range` and its like -> which bytes (pure)
batch_lines.py    a batch's input, checked line by line (pure)

A file is written into a directory of its process' own (`incoming/`), synced, renamed into `content/`, and only then
gets its row: whatever is killed, what has a row is whole, and what has none is not seen, and swept. Removing goes the
other way, the row first. A part of an upload is kept as a file is; completing an upload writes them together into one.
"""
