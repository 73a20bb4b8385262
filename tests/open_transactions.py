"""A transaction that nobody ends, as a dead writer leaves one."""

from __future__ import annotations

from confluent_kafka import Producer


def an_open_transaction(clients: dict[str, object], name: str, topic: str) -> Producer:
    """It has written one record, which the broker has."""
    producer = Producer({**clients, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"torn")
    producer.flush(30)
    return producer
