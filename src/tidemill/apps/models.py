"""The models of an app at hand: built from snapshots, the examples log and the registry.

In: settings. Out: the serving models with their fold; boosters by version. Invariant: what cannot be checked is not
loaded; the newest state that can be built is served, and everything that was passed over is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidemill.apps.boosters import load_for
from tidemill.apps.failpoints import failpoint
from tidemill.apps.folding import ExampleFold, ExampleHistory, barrier_of
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.pipeline import Pipeline
from tidemill.core.roles import Roles
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.spec import AppSpec
from tidemill.errors import ModelRefusedError
from tidemill.io.kafka_reader import LogReader
from tidemill.io.model_snapshots import ModelSnapshots
from tidemill.io.registry import Registry
from tidemill.io.signing import PublicKey, SigningKey, load_or_create_key, parse_public_key
from tidemill.io.wire import FeatureShape
from tidemill.models.booster import Booster
from tidemill.models.replica import History, LoadBooster
from tidemill.models.serving import Serving


def store_place(settings: Settings, kind: str) -> str | Path:
    """Where snapshots or models are kept: below the object store, else in the data folder."""
    if settings.object_store is None:
        return settings.data_folder / kind
    return f"{settings.object_store.rstrip('/')}/{kind}"


def signing_key(settings: Settings) -> SigningKey:
    """The key of who trains here; made at the first use."""
    return load_or_create_key(settings.data_folder / "keys" / "signing.pem")


def trusted_keys(settings: Settings) -> list[PublicKey]:
    """Of whom models are accepted: those declared, and who trains in this data folder."""
    return [*map(parse_public_key, settings.trusted_keys), signing_key(settings).public_key()]


def registry_of(settings: Settings) -> Registry:
    return Registry(store_place(settings, "registry"))


def booster_loader(settings: Settings, plan: FeaturePlan) -> LoadBooster:
    """Boosters from the registry, each fetched and checked once."""
    registry, keys = registry_of(settings), trusted_keys(settings)
    loaded: dict[str, Booster] = {}

    def load(version: str) -> Booster:
        if version not in loaded:
            manifest, model = registry.load(settings.app.name, version, keys)
            loaded[version] = load_for(plan, model, manifest)
        return loaded[version]

    return load


def feature_shape(plan: FeaturePlan) -> FeatureShape:
    """What the plan's examples look like; those of an earlier declaration look otherwise."""
    return FeatureShape(plan.digest, len(plan.numeric_names), len(plan.category_names))


def make_models(
    settings: Settings,
    pipeline: Pipeline,
    client_settings: Mapping[str, Any],
    *,
    on_roles: Callable[[Roles], None],
    report: Callable[[str], None],
) -> tuple[Serving, ExampleFold]:
    """Models at the newest usable snapshot, and the fold that takes them on from there."""
    app, plan = settings.app, pipeline.plan
    snapshots = ModelSnapshots(store_place(settings, "snapshots"), failpoint=failpoint)
    reader = LogReader(client_settings, pipeline.examples_topic, 0)
    serving = _newest_serving(
        app,
        plan,
        # A snapshot beyond the end of the log belongs to another log of the same name.
        lambda at_most: snapshots.newest(app.name, at_most, plan.digest, on_refused=report),
        at_most=reader.end_offset(),
        load=booster_loader(settings, plan),
        history=ExampleHistory(client_settings, pipeline.examples_topic, feature_shape(plan)),
        report=report,
    )
    fold = ExampleFold(
        reader=reader,
        serving=serving,
        snapshots=snapshots,
        app=app.name,
        is_bounded=settings.worker.is_bounded,
        on_roles=on_roles,
        report=report,
        expected=feature_shape(plan),
        barrier_ms=barrier_of(app),
    )
    return serving, fold


def _newest_serving(
    app: AppSpec,
    plan: FeaturePlan,
    newest: Callable[[int], ModelSnapshot | None],
    *,
    at_most: int,
    load: LoadBooster,
    history: History,
    report: Callable[[str], None],
) -> Serving:
    """Older snapshots stand in for one whose models cannot be loaded."""
    while True:
        snapshot = newest(at_most)
        try:
            return Serving(
                app,
                plan.numeric_names,
                plan.category_names,
                feature_digest=plan.digest,
                load=load,
                history=history,
                snapshot=snapshot,
                newest_snapshot=newest,
            )
        except ModelRefusedError as error:
            if snapshot is None or error.code == "TM-5002":
                raise
            report(f"snapshot at N={snapshot.n} passed over: {error}")
            at_most = snapshot.n - 1
