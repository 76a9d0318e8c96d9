"""What a study begins with: what the best trials of the last study on this base tried. Their scores are of other images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from frostline.evidence.ranking import list_candidates
from frostline.params import Params, Space
from frostline.search.places import Place, find_place
from frostline.search.space import fit_to_space, list_baselines
from frostline.search.study import ABOUT, Start, list_drawn, list_starts, open_study
from frostline.tracking.messages import describe_starts, say


def begin_study(folder: Path, digest: str, code: str, params: Params) -> Place:
    """Where the study with this digest is kept; begun where it is new with what was learnt, which is said; see `open_study`."""
    tune, place = params.tune, find_place(folder, digest, params)
    # Other images, other epochs: what a trial drew may still be good. Another base is another space.
    about = {"base": params.base.model_dump(mode="json")}
    find = partial(find_starts, place, about, tune.space, tune.start_from)
    open_study(place, code, tune.when_code_changed, about=about, find_starts=find)
    room = max(0, tune.num_trials - len(list_baselines(tune.space, tune.pooling)))
    say("tune", describe_starts([start.origin for start in place.read(list_starts)][:room]))
    return place


def find_starts(place: Place, about: Mapping[str, Any], space: Space, count: int) -> list[Start]:
    """The best trials that were trained, at most `count`, of the study that was written to last; none where there is none.

    place: of the study that begins; about: what both must have in common. Of what a trial drew, that counts which the space
    still holds; the rest is drawn anew.
    """
    for earlier in place.list_earlier() if count else ():
        try:
            study = earlier.load()
            drawn = list_drawn(study) if study.user_attrs.get(ABOUT) == about else []
        except (
            Exception
        ) as error:  # whatever an older version, or half a file, makes the database say: it is not needed
            print(f"tune: study {earlier.digest} is left out: {type(error).__name__}")
            continue
        best = list_candidates([record for record, _ in drawn], count)
        of = {record.number: params for record, params in drawn}
        if best:
            return [Start(fit_to_space(space, of[trial.number]), f"{earlier.digest}/{trial.number}") for trial in best]
    return []
