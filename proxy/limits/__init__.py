"""What keys and projects may use: asked before a request goes to a model, told afterwards what it took.

    dispatch --enter, ask--> Admission --Pass--> dispatch --leave(tokens)--> Admission        seam.py

local.py      `Limits`: decides in this process; of several worker processes one has it, and the others ask that one
owners.py     keys and projects with limits, and the plan that joins what counts for one principal
buckets.py    so much a minute, so much a day: the arithmetic, pure
refusals.py   a refused request in OpenAI's words, and when another try makes sense, pure
estimates.py  tokens where nobody has counted them, pure

Everything is looked at, then everything is taken, or nothing is. A request takes the tokens that it is thought to need;
when it is over, what was too much goes back and what lacked is owed.
"""
