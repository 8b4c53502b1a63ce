"""What machines cost: a dated table that needs no network, and the command that renews it from AWS's price list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graft.errors import CloudError
from graft.launcher.calls import client, explained
from graft.storage import write_text

SHIPPED = Path(__file__).with_name("prices.json")
# AWS's price list is served from few regions only, for all regions.
_LIST_REGION = "us-east-1"
# Real-time inference of the same machine costs the same in the shipped table; some machines do only one of the two.
_TRAINING, _INFERENCE = "Training", "Hosting"


@dataclass(frozen=True)
class Machine:
    """An instance type: dollars per hour of one, its virtual cores and its GPUs."""

    usd_per_hour: float
    vcpus: int
    gpus: int


@dataclass(frozen=True)
class Prices:
    """On-demand prices of one region.

    Attributes:
        date: when they were read, ISO.
        region: where they hold.
        source: who says so.
        machines: instance type -> machine.
    """

    date: str
    region: str
    source: str
    machines: Mapping[str, Machine]

    def of(self, instance_type: str, region: str | None) -> float | None:
        """Dollars per hour in a region (None: the table's); None where the table does not say."""
        machine = self.machines.get(instance_type)
        return machine.usd_per_hour if machine and region in (None, self.region) else None


def read_prices(cache_dir: Path, region: str | None) -> Prices:
    """The table of a region that `python -m graft.launcher prices` read, else the one of this release.

    Args:
        cache_dir: `features.cache_dir`.
        region: None stands for that of the release's table.
    """
    shipped = _read(SHIPPED)
    renewed = renewed_path(cache_dir, region or shipped.region)
    return _read(renewed) if renewed.exists() else shipped


def renewed_path(cache_dir: Path, region: str) -> Path:
    """Where the prices of a region are kept that were read from AWS."""
    return cache_dir / f"prices-{region}.json"


def _read(path: Path) -> Prices:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        machines = {name: Machine(**machine) for name, machine in content["machines"].items()}
        return Prices(content["date"], content["region"], content["source"], machines)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CloudError(f"{path} cannot be read ({error}); delete it, and the table of the release counts") from error


def renew_prices(region: str, cache_dir: Path) -> Prices:
    """Read today's prices of a region from AWS's price list and keep them.

    Raises:
        CloudError: AWS does not answer, or lists nothing for the region.
    """
    found = dict(_listed(region, _INFERENCE)) | dict(_listed(region, _TRAINING))
    if not found:
        raise CloudError(f"region {region}: AWS's price list has no prices of machines there; check the name")
    prices = Prices(datetime.now(UTC).date().isoformat(), region, "AWS's price list (GetProducts)", found)
    content = asdict(prices) | {"machines": {name: asdict(machine) for name, machine in sorted(found.items())}}
    write_text(renewed_path(cache_dir, region), json.dumps(content, indent=1) + "\n")
    return prices


def _listed(region: str, kind: str) -> Iterator[tuple[str, Machine]]:
    filters = {"regionCode": region, "component": kind, "productFamily": "ML Instance"}
    terms = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()]
    with explained("reading the price list"):
        pages = client("pricing", _LIST_REGION).get_paginator("get_products")
        for page in pages.paginate(ServiceCode="AmazonSageMaker", Filters=terms):
            for text in page["PriceList"]:
                yield from machines_of(json.loads(text))


def machines_of(product: Mapping[str, Any]) -> Iterator[tuple[str, Machine]]:
    """The machine that an entry of the price list describes; none where it is no on-demand price per hour.

    Its attributes name the type as ml.g4dn.xlarge, or with the kind of use behind it (ml.g4dn.xlarge-Training).
    """
    attributes = product["product"]["attributes"]
    name = str(attributes.get("instanceName") or attributes.get("instanceType", "")).partition("-")[0]
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for price in term["priceDimensions"].values():
            usd = float(price["pricePerUnit"].get("USD", 0))
            if name.startswith("ml.") and usd > 0 and price.get("unit", "Hrs") in ("Hrs", "Hours", "hours"):
                yield name, Machine(usd, int(attributes.get("vCpu", 0)), _gpus(str(attributes.get("gpu", "0"))))


def _gpus(text: str) -> int:
    return int(text) if text.isdigit() else 0
