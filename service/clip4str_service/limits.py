"""How much each API key may ask: crops a second, in bursts, and crops in flight.

Time is passed in: CLOCK_MONOTONIC in seconds, so that no step of the wall clock gives or takes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clip4str_service.errors import TooManyCropsError

_FULL_RETRY = 0.1  # seconds; when crops in flight will be answered is not known here
_DUST = 1e-6  # crops; what rounding may leave missing when exactly `retry_after` has passed


class RateLimitedError(Exception):
    """A key has used up what it may ask for now; it may ask again `retry_after` seconds later."""

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key may ask. None: as much as there is.

    `burst_crops` may be asked at once after a pause; then `crops_per_second`. It is at least 1.
    """

    crops_per_second: float | None = None
    burst_crops: int = 1
    max_crops_in_flight: int | None = None


class Limits:
    """The allowances of all tenants, and what each has taken. Tenants without an allowance take freely."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def configure(self, allowances: Mapping[str, Allowance]) -> None:
        """The allowances from now on. What tenants have taken stays taken; who is new begins with a full burst."""
        accounts = {}
        for tenant, allowance in allowances.items():
            account = self._accounts.get(tenant) or _Account(allowance)
            account.change(allowance)
            accounts[tenant] = account
        self._accounts = accounts

    def take(self, tenant: str, crops: int, now: float) -> None:
        """Lets a tenant have `crops` more in flight: all or none. `now`: seconds.

        Raises:
            TooManyCropsError: so many at once are never allowed.
            RateLimitedError: they may be, later.
        """
        account = self._accounts.get(tenant)
        if account is not None:
            account.take(crops, now)

    def give_back(self, tenant: str, crops: int) -> None:
        """Some of the crops taken have their outcomes, and are in flight no more."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.give_back(crops)

    def refund(self, tenant: str, crops: int) -> None:
        """Crops just taken could not be admitted: neither are they in flight, nor do they count for the rate."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.give_back(crops)
            account.refund(crops)


class _Account:
    """A bucket of tokens, one a crop, and a count of crops in flight."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._tokens = float(allowance.burst_crops)
        self._filled_at: float | None = None
        self._in_flight = 0

    def change(self, allowance: Allowance) -> None:
        grown = max(0, allowance.burst_crops - self._allowance.burst_crops)
        self._tokens = min(self._tokens + grown, allowance.burst_crops)
        self._allowance = allowance

    def take(self, crops: int, now: float) -> None:
        allowance = self._allowance
        rate, most = allowance.crops_per_second, allowance.max_crops_in_flight
        if rate is not None and crops > allowance.burst_crops:
            raise TooManyCropsError(
                f"{crops} crops at once; the API key's burst_crops allows {allowance.burst_crops}: ask in parts"
            )
        if most is not None and crops > most:
            raise TooManyCropsError(
                f"{crops} crops at once; the API key's max_crops_in_flight allows {most}: ask in parts"
            )
        if most is not None and self._in_flight + crops > most:
            raise RateLimitedError(
                f"the API key has {self._in_flight} crops in flight; its max_crops_in_flight is {most}",
                _FULL_RETRY,
            )
        if rate is not None:
            self._fill(now)
            missing = crops - self._tokens
            if missing > _DUST:
                raise RateLimitedError(
                    f"the API key has used up its rate of {rate:g} crops_per_second", missing / rate
                )
            self._tokens -= crops
        self._in_flight += crops

    def give_back(self, crops: int) -> None:
        # An account may be younger than the crops: its key was away for a reload or two while they were read.
        self._in_flight = max(0, self._in_flight - crops)

    def refund(self, crops: int) -> None:
        self._tokens = min(self._tokens + crops, self._allowance.burst_crops)

    def _fill(self, now: float) -> None:
        rate, burst = self._allowance.crops_per_second, self._allowance.burst_crops
        if rate is not None and self._filled_at is not None:
            self._tokens = min(self._tokens + rate * max(0.0, now - self._filled_at), burst)
        self._filled_at = now if self._filled_at is None else max(self._filled_at, now)
