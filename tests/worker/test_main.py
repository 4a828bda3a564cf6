"""Whole jobs through a real worker."""

import hashlib

from tests.worker.conftest import Bench, result_of


def test_a_job_ends_as_a_picture_with_its_pyramid(bench: Bench) -> None:
    bench.start_worker()
    job = bench.await_end(bench.submit(width_px=1024, height_px=768))
    result = result_of(job)
    assert (result.width_px, result.height_px, result.media_type) == (1024, 768, "image/png")
    assert hashlib.sha256(bench.picture(job)).hexdigest() == result.sha256
    assert f"{result.pyramid_key}.dzi" in bench.files()
    assert f"{result.pyramid_key}_files/10/0_0.jpg" in bench.files()
