"""RainbowCandy: a candy takes dyes on its way and must leave in the right colour; which dye lies where is hidden."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, over, sample, shuffled
from .graphs import COMPASS, cheapest, distances, inside
from .parse import Form

Cell = tuple[int, int]
MIXED = {frozenset("RG"): "Y", frozenset("GB"): "C", frozenset("RB"): "P"}
MADE_OF = {mixed: "".join(sorted(dyes)) for dyes, mixed in MIXED.items()}
#: a hidden dye in place of a step, when ways are weighed
UNKNOWN = 1.4


def dyed(color: str, device: str, mixes: bool = True) -> str:
    """The candy's colour after a cell."""
    if device == "-":
        return color
    if device == "W" or color == "W":
        return device
    if color not in "RGB":
        return color
    return MIXED.get(frozenset((color, device)), color) if mixes else color


class RainbowCandy(Game):
    """See the module; quirk `rainbow.no_mix`: colours never mix."""

    name, kind = "RainbowCandy", "so"
    LEVELS = {
        "easy": {"size": 3, "targets": "RGBY"},
        "medium": {"size": 4, "targets": "YCP"},
        "hard": {"size": 5, "targets": "YCP"},
    }
    QUIRKS = ("rainbow.no_mix",)
    FORMS = (Form("move", "My Move:_<[NSEW]>"),)
    NO_FORM = "Invalid format. Use 'My Move: X' where X is N/S/E/W"
    FIELDS = {"graph": dict}
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, size: int, targets: str) -> Row:
        """See Game."""
        while True:
            target = choice(rng, targets)
            steps = shuffled(rng, "E" * (size - 1) + "S" * (size - 1))
            at, path = (1, 1), [(1, 1)]
            for d in steps:
                at = (at[0] + COMPASS[d][0], at[1] + COMPASS[d][1])
                path.append(at)
            needed = ["W", *shuffled(rng, MADE_OF.get(target, target))]
            places = sorted(sample(rng, range(1, len(path) - 1), len(needed)))
            cells = [(x, y) for x in range(1, size + 1) for y in range(1, size + 1)]
            device = {c: choice(rng, "RGB") if rng.random() < 0.5 else "-" for c in cells if c not in path}
            device |= dict.fromkeys(path, "-")
            device |= {path[i]: d for i, d in zip(places, needed, strict=True)}
            if (len(needed) == len(places)) and _shortest(size, device, target) is not None:
                break
        devices = {f"{x},{y}": device[x, y] for x, y in cells}
        return {"scale": size, "graph": {"size": size, "devices": devices, "target": target}}

    def begin(self) -> None:
        """See Game."""
        graph = self.row["graph"]
        self.size, self.target = int(graph["size"]), graph["target"]
        self.device: dict[Cell, str] = {
            (int(k.split(",")[0]), int(k.split(",")[1])): v for k, v in graph["devices"].items()
        }
        self.at, self.color = (1, 1), "W"
        if len(self.device) != self.size**2:
            raise ValueError("there is not a device or none for every cell")

    def tell(self) -> str:
        """See Game."""
        n = self.size
        lines = (" ".join(_seen(self.device[x, y]) for y in range(1, n + 1)) for x in range(1, n + 1))
        shown = "\n".join(lines)
        return (
            f"A white candy lies in row 1, column 1 of a grid and must leave it in row {n}, column {n} with the colour "
            f"{self.target}:\n{shown}\n"
            "Each X dyes it R, G or B, always the same one in a cell, but you do not see which; W bleaches it white; "
            "- does nothing. White takes a dye's colour. R and G make Y, G and B make C, R and B make P; a dye of its "
            "own colour changes nothing, and a mixed colour changes only by bleach.\n"
            "- `My Move: E` goes right, W left, S down, N up; you must not leave the grid. I reply with the colour (W "
            "for white), or WIN. With another colour the game goes on at the exit."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        d = said[0].upper()
        to = (self.at[0] + COMPASS[d][0], self.at[1] + COMPASS[d][1])
        if not inside(self.size, *to):
            raise Refused("Invalid move: out of bounds", "rule")
        self.at = to
        self.color = dyed(self.color, self.device[to], not self.quirk("rainbow.no_mix"))
        if to == (self.size, self.size) and self.color == self.target:
            return over(d, "WIN", True)
        return heard(d, self.color)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        x, y = self.at
        return [f"My Move: {d}" for d, (a, b) in COMPASS.items() if inside(self.size, x + a, y + b)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The cheapest way over (cell, colour) where a hidden dye may be any that is not ruled out; planned anew."""
        may = {c: set("RGB") if d in "RGB" else {d} for c, d in self.device.items()}
        at, color, goal = (1, 1), "W", (self.size, self.size)
        mixes = not self.quirk("rainbow.no_mix")

        def steps(state: tuple[Cell, str]) -> Any:
            (x, y), now = state
            for a, b in COMPASS.values():
                to = (x + a, y + b)
                if inside(self.size, *to):
                    kinds = sorted(may[to])
                    ends: dict[str, int] = {}
                    for device in kinds:
                        end = dyed(now, device, mixes)
                        ends[end] = ends.get(end, 0) + 1
                    for end, ways in ends.items():
                        sure = ways == len(kinds)
                        yield (to, end), 1.0 if sure else UNKNOWN

        while True:
            found = cheapest((at, color), lambda s: s == (goal, self.target), steps)
            moves = [c for c, _ in (s[0] for s in steps((at, color)))]
            to = found[1][1][0] if found and len(found[1]) > 1 else choice(rng, moves)
            d = next(d for d, s in COMPASS.items() if (at[0] + s[0], at[1] + s[1]) == to)
            now = yield f"My Move: {d}"
            may[to] = {device for device in may[to] if dyed(color, device, mixes) == now} or may[to]
            at, color = to, now

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return any("win" in reply.lower() for _, reply in turns)

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        found = []
        if _shortest(self.size, self.device, self.target, not self.quirk("rainbow.no_mix")) is None:
            found.append(("unsolvable", "no way gives the target by the rules in force"))
        if self.quirk("rainbow.no_mix") and _shortest(self.size, self.device, self.target) is None:
            found.append(("unsolvable by the prompt", "no way gives the target where colours mix"))
        return found


def _seen(device: str) -> str:
    return "X" if device in "RGB" else device


def _shortest(size: int, device: dict[Cell, str], target: str, mixes: bool = True) -> int | None:
    """Steps to the exit with the target's colour, None where there is no way."""

    def steps(state: tuple[Cell, str]) -> list[tuple[Cell, str]]:
        (x, y), color = state
        to = [(x + a, y + b) for a, b in COMPASS.values() if inside(size, x + a, y + b)]
        return [(c, dyed(color, device[c], mixes)) for c in to]

    return distances(((1, 1), "W"), steps).get(((size, size), target))
