"""What each key of an app's YAML means, in one sentence; `config_reference` makes docs/configuration.md of it.

In: nothing. Out: texts by model and key. Invariant: every key of every model has one, and none is left over
(tests/test_docs.py).
"""

from __future__ import annotations

from collections.abc import Mapping

FILE: Mapping[str, str] = {
    "name": "Of the app: the prefix of its output topics, groups, transactional ids and keys in the store.",
    "topics": "Input topics by name. Their order breaks ties of event time within a role.",
    "label": "When a label is positive, and how long an event waits for it.",
    "groups": "Features, by the entity whose history they read.",
    "learner": "The online learner.",
    "booster": "How boosters are trained; changes nothing that a worker computes.",
    "blend": "How the experts are weighted.",
    "costs": "What wrong decisions cost: they set the threshold of `decision`.",
    "comparators": "Models that are measured beside those that serve, by name; they never serve.",
    "monitor": "How drift is judged.",
    "retrain": "When a new booster is trained, and what it proves before it serves. Without it: only by hand.",
    "max_skew": "How far in event time a worker may be ahead of the slowest other one.",
    "batch_records": "Records that one batch holds at most.",
    "batch_span": "Event time that one batch covers at most; without it, as much as there is.",
    "default_probability": "Served, flagged `degraded`, while nothing has been learned.",
    "limits": "What one input record may hold; see [security](security.md).",
    "learn_flagged": "Learn also from examples whose event or label broke a rule that flags.",
    "kafka": "Settings of librdkafka, given verbatim to every client, `bootstrap.servers` among them. `${NAME}` is read"
    " from the environment.",
    "redis_url": "Redis or Valkey: `redis://`, `rediss://` (TLS) or `unix://`. `${NAME}` is read from the environment.",
    "object_store": "Snapshots and models: a folder, or `s3://`, `gs://`, `az://`. Without it: in the data folder.",
    "trusted_keys": "Public keys (`ed25519:...`) of those who may sign models, beside the one in the data folder.",
    "sinks": "Where alerts are sent, beside the alarm topic.",
    "schema_registry": "Where schemas are looked up that are not declared; see [schemas](schemas.md).",
    "worker": "How a worker process runs.",
}
TOPIC: Mapping[str, str] = {
    "role": "event: is predicted. label: tells the truth about an event, by its id. context: only feeds features.",
    "schema": "The Avro schema by which records are read: a path relative to the YAML file.",
    "id": "The field that names the event. Events and labels need it, context has none.",
    "time": "The field that holds the event time, believed up to `max_skew` after the Kafka timestamp; without it, the"
    " Kafka timestamp is the event time.",
    "partitions": "Of the topic, where `tidemill produce` or the demo creates it.",
    "rules": "What a sound record satisfies; see [entry rules](entry-rules.md).",
    "writers": "Other schemas that records may be written with: paths or patterns such as `old/*.avsc`, relative to the"
    " YAML file; see [schemas](schemas.md).",
}
RULE: Mapping[str, str] = {
    "field": "The field that is looked at.",
    "otherwise": "What becomes of a record that breaks the rule.",
    "above": "The value is larger than this.",
    "at_least": "The value is this or larger.",
    "below": "The value is smaller than this.",
    "at_most": "The value is this or smaller.",
    "one_of": "The value is one of these, all texts or all whole numbers.",
    "matches": "The whole text matches this regular expression of RE2.",
    "is_missing": "true: the field is null. false: it is not, so it is required.",
    "not_after": "Another field, which is at least as large.",
    "not_before": "Another field, which is at most as large.",
    "differs_from": "Another field, which has another value.",
    "burst_above": "More records than this with one value of the field in one batch, and all of them are flagged.",
}
LABEL: Mapping[str, str] = {
    "positive_if_any": "The label is positive where one of these conditions holds.",
    "wait": "An event without a label expires so long after its time.",
    "allowed_lateness": "How late a record may come, in event time, and still count as in time.",
    "dedup_window": "A second record with the id of an earlier one is a duplicate for so long.",
}
CONDITION: Mapping[str, str] = {
    "field": "A field of the label record; null satisfies no condition.",
    "above": "Holds where the value is larger.",
    "at_least": "Holds where the value is this or larger.",
    "below": "Holds where the value is smaller.",
    "equals": "Holds where the value is this text, number or truth value.",
    "one_of": "Holds where the text is one of these.",
}
GROUP: Mapping[str, str] = {
    "entity": "Fields whose values name the entity, the same in all topics that feed the group; `[]`: one for all.",
    "features": "Features by name.",
    "version": "Raise it with a change of the group; `tidemill features fill` then fills the new state by replay.",
}
FEATURE: Mapping[str, str] = {
    "kind": "What is computed; see [features](features.md) for each kind and what it needs.",
    "of": "The topic whose records feed it.",
    "field": "The field that is read.",
    "value": "A numeric field of `of`, or `label`: 1 where the label is positive.",
    "unit": "Values are stored as round(value / unit), so that sums are whole numbers.",
    "window": "How far back it looks; a multiple of 12 ms.",
    "prior": "Of means: what is assumed before anything was seen.",
    "prior_weight": "Of means: as how many records the prior counts.",
    "half_life": "After so long a record counts for half.",
    "back": "Of `latest`: 0 the newest record, 1 the one before it, and so on.",
    "closed_by": "Of `open`: the topic whose records close what those of `of` opened.",
    "due": "Of `open`: a field of `of` with the time at which its records begin to count.",
    "closed_due": "Of `open`: a field of `closed_by` with the time before which its records do not count.",
    "ahead": "Of `open`: a due time further ahead of its record does not count.",
    "part": "The part of the event's time that is read.",
    "zone": "The time zone in which it is read: an IANA name.",
}
LEARNER: Mapping[str, str] = {
    "arguments": "Of Vowpal Wabbit.",
    "snapshot_every": "Offsets of the examples log between two snapshots.",
    "warm_offsets": "Offsets that a new version's learner folds again with its booster.",
}
BOOSTER: Mapping[str, str] = {
    "rounds": "Trees at most.",
    "early_stopping_rounds": "Trees without a better loss on the newest examples, after which no more are grown.",
    "validation_share": "Of the examples, the newest by label time: they say how many trees.",
    "max_depth": "Of a tree.",
    "learning_rate": "What each tree adds of its answer.",
    "subsample": "Share of the examples for each tree.",
    "column_share": "Share of the columns for each tree.",
    "min_child_weight": "Least sum of second derivatives in a leaf.",
    "max_bin": "Thresholds per column.",
    "leaf_trees": "Of so many first trees the leaves are tokens of the learner.",
    "category_values_max": "Values of a category that are told apart, the most frequent; the rest count as missing.",
}
BLEND: Mapping[str, str] = {
    "rate": "How fast weights follow the loss.",
    "share": "Of all weight, given out evenly after each example: how fast a loser of long ago comes back.",
}
COSTS: Mapping[str, str] = {
    "false_alarm": "Of a positive decision for a negative event, in any unit.",
    "miss": "Of a negative decision for a positive event, in the same unit.",
}
COMPARATOR: Mapping[str, str] = {
    "kind": "constant: the share of known labels. no_change: the newest known label. booster: trained once or again.",
    "trained_until": "Of a booster: on examples whose label came before this.",
    "retrain_every": "Of a booster: trained again so often.",
    "features": "Of a booster: these features only; without it, all.",
}
MONITOR: Mapping[str, str] = {
    "every": "A tick: the slice of event time at whose end everything is judged.",
    "window": "The last ticks that the tests on features, predictions and labels look at.",
    "reference_ticks": "Ticks taken as normal after a start, before concept drift is judged; a new model is judged by"
    " the old measure until it has as many of its own. Of ticks with few labels several count as one.",
    "average_run_length": "Ticks between two false alarms of a detector, at least.",
    "psi": "A smaller shift (population stability index) is no alert, however certain it is.",
    "missing": "Rise of the share of missing values, of values out of range, of unseen categories that is an alert.",
    "volume": "Events of a tick below this share of the median of the same weekday's are an alert.",
    "run_of_one_class": "So many consecutive labels of one class are an alert.",
    "quiet": "An alert is resolved when its detector was silent for so long.",
    "cooldown": "After a resolution, before an alert of the same key may open.",
}
RETRAIN: Mapping[str, str] = {
    "any_of": "Train when one of these triggers holds.",
    "all_of": "Train when all of these hold at one tick; beside `any_of`, one of those has to hold as well.",
    "window": "What a booster is trained on: `all`, or a mapping with `last` or `half_life`.",
    "examples_min": "Fewer examples are not trained on.",
    "cooldown": "Between two trainings of the loop's own; a demand (`tidemill retrain`) does not wait for it.",
    "latency": "Bounded replay: the event time that a training takes. Live, it takes what it takes.",
    "timeout": "A training that takes longer is killed.",
    "needs_approval": "A person approves (`tidemill models approve`, or `reject`) before a challenger serves anything.",
    "holdout": "Share of all examples that no booster is trained on, by a hash of their offset.",
    "gate_margin": "Nats of log loss by which a challenger may be worse than the champion on recent rows and holdout.",
    "slice_margin": "The same for each value of a category.",
    "slice_examples": "Values of a category with fewer examples are not judged.",
    "rollout": "What a challenger proves after the gate.",
    "guards_learner": "Freeze and roll back the learner where it is worse than booster and constant.",
}
TRIGGER: Mapping[str, str] = {
    "alert": "An alert of this type has opened or repeated.",
    "every": "So much event time since the last training.",
    "growth": "Examples have grown by this share since the last training.",
    "worse_than": "The log loss as served is above that of this expert: `booster`, `learner` or `base_rate`.",
}
WINDOW: Mapping[str, str] = {
    "last": "The examples of so much time before the training.",
    "half_life": "All examples, the weight of one halved for each such time of age.",
}
ROLLOUT: Mapping[str, str] = {
    "alpha": "How often a rollout may err: the confidence sequence holds at every look with probability 1 - alpha.",
    "examples_min": "Examples before the first look at a stage.",
    "examples_max": "Undecided after so many examples, the challenger goes.",
    "margin": "Nats of log loss: promoted when it is certainly not worse than this.",
    "canary_share": "Share of events the challenger answers before promotion, alike in all workers; 0: no canary.",
    "canary_examples": "Examples of the canary stage.",
    "probation_examples": "The former champion is scored beside for so many examples, ready to come back.",
}
SINK: Mapping[str, str] = {
    "kind": "The form of the request.",
    "name": "Under it Kafka keeps how far the sink is: two of one kind need one each, a new name begins with the oldest"
    " alert. Without one it is the kind.",
    "url": "Where it goes. `${NAME}` is read from the environment.",
    "headers": "Of every request. `${NAME}` is read from the environment.",
    "min_severity": "Alerts below it are not sent.",
}
LIMITS: Mapping[str, str] = {
    "value_bytes": "Of a value; a larger one is a dead letter, unread.",
    "text_bytes": "Of an id, an entity, a category; they become keys of the store and stand in each output.",
    "items": "Of all arrays and maps of a record together.",
}
SCHEMA_REGISTRY: Mapping[str, str] = {
    "url": "Confluent's protocol: `http://` or `https://`. `${NAME}` is read from the environment.",
    "basic_auth": "`user:password`. `${NAME}` is read from the environment.",
    "ca_file": "Certificates (PEM) for `https://`, a path relative to the YAML file; without it those of the system.",
    "timeout": "Of connecting, and of each read.",
    "refresh": "How often the subjects `<topic>-value` are read ahead of their first record.",
    "if_unreachable": "What becomes of a record whose schema is not known while the registry is away: wait for it, or"
    " make a dead letter of it.",
}
WORKER: Mapping[str, str] = {
    "bounded": "The inputs end: wait for every partition, and end when all is processed.",
    "max_idle": "Live: how long a partition that lags may hold back the others.",
    "idle_after": "Live: a partition without records for so long takes the watermark of the group.",
    "stall_after": "No progress for so long although there is lag: the worker ends with 4.",
    "start_timeout": "Servers may come up so much later than the worker.",
    "when_behind": "While partitions of other workers are rebuilt: stop scoring, or go on, flagged `degraded`; see"
    " [restore](restore.md).",
    "metrics_port": "Serves /healthz and /metrics on 127.0.0.1; 0: not.",
}
ENVIRONMENT: Mapping[str, str] = {
    "TIDEMILL_BOOTSTRAP_SERVERS": "Kafka's address; goes before `kafka: {bootstrap.servers: ...}`.",
    "TIDEMILL_REDIS_URL": "The store's address; goes before `redis_url`.",
    "TIDEMILL_OBJECT_STORE": "Goes before `object_store`.",
    "TIDEMILL_DATA": "Data folder: slots, logs, snapshots, the signing key. Default: `tidemill` in `$XDG_DATA_HOME`.",
    "XDG_DATA_HOME": "Default: `~/.local/share`.",
    "XDG_CACHE_HOME": "Kafka's jars are kept in its folder `tidemill`. Default: `~/.cache`.",
    "TIDEMILL_VENV": "`scripts/` only: the folder of the virtual environment. Default: `.venv`.",
    "TIDEMILL_PYTHON": "`scripts/` only: the Python it is made with.",
    "TIDEMILL_FAILPOINT": "Tests only: where a worker kills itself.",
}
