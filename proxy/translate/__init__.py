"""Other APIs spoken over a chat completion, both ways. Pure: values and bytes in, values and bytes out.

    /v1/responses --responses.to_chat--> chat request          chat chunks --response_events.ResponseEvents--> events
    /v1/messages  --messages.to_chat---> chat request          chat chunks --message_events.MessageEvents----> events

    chunks.py       whole server-sent events -> JSON; named events back
    segments.py     chat chunks -> reasoning, text, refusals, tool calls, one after the other: both consist of these
    items.py        the Responses API's items: identified, kept, told as chat messages
    relay.py        events of an engine that speaks the API by itself: names put back, the end and the usage noticed

A whole reply goes through the same machine as a stream, as one chunk: so what a stream adds up to is what a client that
does not stream gets.
"""
