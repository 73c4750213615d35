"""`tribunal`, a virtual model: several models propose, criticise and refine one answer.

Nothing is served from here yet (the README says what exists). The package holds its place in the import arrows:
`proxy` may import it, it may import `backends`, nothing else.
"""
