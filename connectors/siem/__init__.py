"""Elasticsearch and OpenSearch: the change feed as a source, the alert and audit streams as a sink.

::

    client.py     one cluster over HTTP: access, bounds, and the errors that callers act on
    feed.py       what was read of a shard and what is still to come (no I/O)
    indices.py    which indices there are, where they come from, how their shards stand
    source.py     the Source: the change feed, or by index the time-based fallback of timed.py
    sink.py       the Sink: bulk, item by item
    install.py    templates, pipeline and roles; doctor's checks
"""

from agent.ports import Connector
from connectors.siem import sink, source

elasticsearch = Connector(source.build("elasticsearch"), sink.build("elasticsearch"), keeps_audit=True)
opensearch = Connector(source.build("opensearch"), sink.build("opensearch"), keeps_audit=True)
