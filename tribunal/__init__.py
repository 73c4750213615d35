"""`tribunal`, a virtual model: several models propose, criticise and refine one answer.

    Profile, Member, ...   profile.py    who deliberates and how, frozen; what a request may change; what is impossible
        |
        v
    Plan                   plan.py       the deliberation as a pure state machine: events in, actions out (moves.py)
        |- Case            case.py       what its stages share: candidates, ranking
        |- Drafting        drafting.py   members answer, until enough agree
        |- Critique, Refine   reviewing.py   rounds: critics see others' answers under labels; errors are mended
        |- Judging, Deliver   deciding.py    the closest two in both orders; a candidate as it is, or a synthesis
        |- Children        children.py   who runs, until when, and twice if it takes too long
        |- Budget, Deadlines  budget.py  calls, tokens and time; the verdict's share is set aside first
        `- Trace           trace.py      all that happened; redaction

    answers.py     when two answers are the same: numbers.py, json_answers.py
    ballots.py     critics' and judges' replies -> votes, counted in code; labels and orders from the seed
    prompts.py     what each child is sent: the conversation first, what models said as data; templates.py: the words

Everything above is pure: no clock, no I/O, no randomness but the seed. The thin rest lets it happen:

    TribunalBackend        backend.py    actions -> children through the ordinary dispatch -> events; latencies.py
    requests.py            a client's request -> a Question    response_format.py   does an answer keep to it
    stream.py, replies.py  what the client gets

`proxy` may import this package, it may import `backends`, nothing else.
"""
