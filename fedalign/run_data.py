"""What a run finds out about its data before anything is written or started."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedalign.config import RunConfig, to_json
from fedalign.data.schema import Question
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.site import OpenSite
from fedalign.guarantee import check_aggregation, check_guarantee, check_users


@dataclass(frozen=True)
class RunData:
    """How many clients there are, what was left out on the way, what a survey asks; and the seconds to find out.

    Parameters
    ----------
    clients : int
    dropped : mapping from reason to int
    questionnaire : mapping from question to int
        How many options each has.
    questions : mapping from str to Question
    seconds : float
    """

    clients: int
    dropped: Mapping[str, int]
    questionnaire: Mapping[str, int]
    questions: Mapping[str, Question] = field(default_factory=dict)
    seconds: float = 0.0


def checked_data(resolved: Mapping[str, Any], config: RunConfig, open_site: OpenSite) -> RunData:
    """Look at the data; what is bad in them is found here.

    Parameters
    ----------
    resolved : mapping
        The resolved configuration.
    config : RunConfig
        The same, typed.
    open_site : callable
        Opens the data, which the run's nodes then find open.

    Raises
    ------
    UserError
        Naming what does not go together, or is too little for what is asked.
    DataError
        Naming what cannot be read.
    """
    began = time.perf_counter()
    site = open_site(to_json(resolved), {})
    directory = ClientDirectory.of(site.data.clients)
    directory.check(site.phases, config.federation.sampler)
    directory.check_least(site.phases, config.federation.min_clients)
    directory.check_cohorts(site.phases, config.federation.sampler, config.federation.aggregation)
    check_aggregation(config, site.phases)
    config.population.fleet(directory.training, config.seed)
    check_guarantee(config, site.phases, directory)
    check_users(config, site.phases, ((client, site.data.shard(client)) for client in directory.training))
    site.check(client.name for client in site.data.clients)
    data = site.data
    seconds = time.perf_counter() - began
    return RunData(len(data.clients), data.dropped, data.questionnaire, data.questions, seconds)
