"""Trust: keys, envelopes, model signatures, admission.

Bytes in, verified values out: nothing here reads a disk, a clock or the network. What does not verify is a TrustError;
no function answers with a boolean that somebody could forget to look at.

- `keys`: P-256 keys, sealed and named
- `dsse`: envelopes with signatures of several principals
- `oms`: signatures over a model's files
- `manifest`, `admission`: what a model says of itself, and whether it may run
"""
