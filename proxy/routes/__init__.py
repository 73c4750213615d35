"""HTTP on one side, a Call on the other. One file an endpoint; inference.py is what those that ask a model share."""
