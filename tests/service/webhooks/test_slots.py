"""One host gets a few at a time, whatever it does, and no other notices."""

import asyncio

import pytest

from service.webhooks.slots import MOST_AT_ONCE, HostSlots, name_host


@pytest.mark.parametrize("ending", ["", "/", "/a/b", "?a", "?a/b", "#a", ":443/", ":8443?a", "./", ".:443#a"])
def test_a_host_has_one_name_however_its_url_goes_on(ending: str) -> None:
    assert name_host(f"https://Hooks.Example{ending}") == "hooks.example"


def test_to_one_host_few_go_at_once_and_all_in_turn() -> None:
    slots, running, most = HostSlots(), 0, 0

    async def use() -> bool:
        nonlocal running, most
        async with slots.take("a.example") as taken:
            running += taken
            most = max(most, running)
            await asyncio.sleep(0)
            running -= taken
            return taken

    async def run() -> list[bool]:
        return await asyncio.gather(*(use() for _ in range(4 * MOST_AT_ONCE)))

    assert asyncio.run(run()) == [True] * 4 * MOST_AT_ONCE
    assert (most, running) == (MOST_AT_ONCE, 0)


def test_a_host_that_hangs_holds_few_and_no_other_host() -> None:
    async def run() -> None:
        slots, hanging = HostSlots(), asyncio.Event()

        async def hang() -> bool:
            async with slots.take("hanging.example") as taken:
                await hanging.wait()
                return taken

        tasks = [asyncio.create_task(hang()) for _ in range(20 * MOST_AT_ONCE)]
        await asyncio.sleep(0.01)
        async with slots.take("other.example") as taken:
            assert taken
        async with slots.take("hanging.example") as taken:  # at once, for too many wait already
            assert not taken
        hanging.set()
        taken = await asyncio.gather(*tasks)
        assert MOST_AT_ONCE <= sum(taken) < len(tasks) // 2
        async with slots.take("hanging.example") as again:
            assert again

    asyncio.run(run())
