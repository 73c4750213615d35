"""Pure parts, both ends of a link in one event loop, and gateways of real processes."""
