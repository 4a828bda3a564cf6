"""The command line."""

import sys
import time
from io import TextIOWrapper
from typing import Annotated, cast

import typer
from pydantic import Field
from typer import Argument, Option

from api_schemas.job import JobStatus
from chorale import (
    derived_commands,
    installed,
    keys_commands,
    models_command,
    part_commands,
    provenance_commands,
    region_options,
    source_options,
)
from chorale import picture_options as options
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import ChoraleError, KeyFormatError, ProblemError, RefusedStartError
from chorale.file_options import require_place
from chorale.follow import follow_job
from chorale.interrupts import heed_interrupts
from chorale.part_commands import Devices, RootPath
from chorale.plain_text import show
from chorale.server_options import (
    Data,
    Key,
    Url,
    find_server,
    once_served,
    open_notes,
    open_server,
    telling_what_is_kept,
)
from chorale.tables import lay_jobs, print_table
from chorale.typed_options import Given, OptionError, naming_options, tell_usage, typed

_FAILED, _WRONG_OPTION = 1, 2


app = typer.Typer(
    name="chorale",
    help="Very large pictures by tiled diffusion on one or several GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models_command.app, name="models")
app.add_typer(keys_commands.app, name="keys")
derived_commands.add_to(app)
part_commands.add_to(app)
provenance_commands.add_to(app)
Port = Annotated[int, Field(ge=0, le=65_535)]
WorkerCount = Annotated[int, Field(ge=1, le=64)]
JobCount = Annotated[int, Field(ge=1, le=100)]


def main() -> None:
    """Run the command; print errors in one line, without a traceback."""
    heed_interrupts()
    _print_anything()
    try:
        sys.exit(app(standalone_mode=False))  # a code, if one of its commands or Ctrl-C gives any
    except typer.TyperException as error:
        if said := tell_usage(error):  # nothing where its help was all that was left to say
            _say_error(said)
        sys.exit(error.exit_code)
    except ChoraleError as error:
        _say_error(f"{error}{_tell_retry(error)}")
        is_refused = isinstance(error, OptionError | KeyFormatError | RefusedStartError)
        sys.exit(_WRONG_OPTION if is_refused else _FAILED)
    except OSError as error:  # a file that cannot be written
        _say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(_FAILED)


def _print_anything() -> None:
    """A terminal that is not for Unicode shows escapes; file names of any bytes are printed as they are."""
    terminal = cast(TextIOWrapper, sys.stdout)
    is_unicode = terminal.encoding.lower().startswith("utf")
    terminal.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")


@app.command()
def up(
    data: Data = None,
    host: Annotated[str, Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typed(Port, help="0 for any free port.")] = 8000,
    model: Annotated[
        list[str] | None,
        Option(
            help="Name on the allow-list, model folder, or name on the hub; may be repeated.",
            show_default="CHORALE_MODEL, or the bundled model",
        ),
    ] = None,
    devices: Devices = None,
    workers: Annotated[int, typed(WorkerCount, help="Worker processes for each model.")] = 1,
    root_path: RootPath = None,
) -> None:
    """Run queue, API, worker and webhooks on this machine until Ctrl-C. Queued jobs survive a restart."""
    installed.require(installed.STACK, "all")
    from chorale.local import StackOptions
    from chorale.start import start_stack

    folder, console = DataFolder(data), open_notes()
    chosen = StackOptions(
        host, port, tuple(model or ()), devices, workers, root_path=root_path, for_ever=True
    )
    try:
        with start_stack(folder, chosen, console) as stack:
            print(stack.url, flush=True)
            console.print(f"data and logs: {folder.path}\nCtrl-C stops; queued jobs are kept", style="dim")
            while True:
                stack.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopped", style="dim")


@app.command()
def doctor(
    data: Data = None,
    repair: Annotated[
        bool, Option("--repair", help="Mend the queue's log. What is taken away from it is kept beside it.")
    ] = False,
) -> None:
    """Say what is wrong with a data directory: queue, store, permissions, allow-list."""
    installed.require(installed.STACK, "all")
    from chorale.doctor import examine

    is_well = True
    for finding in examine(DataFolder(data), repair=repair):
        print(f"{'ok  ' if finding.is_well else 'BAD '} {finding.part}: {finding.text}", flush=True)
        is_well &= finding.is_well
    sys.exit(0 if is_well else _FAILED)


@app.command()
def generate(
    prompt: options.Prompt = None,
    output: options.Output = None,
    size: options.Size = None,
    seamless: options.SeamlessAxes = "none",
    layout: options.LayoutName = "auto",
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    negative: options.Negative = None,
    model: options.Model = None,
    lora: options.Loras = None,
    control: options.Control = None,
    control_image: options.ControlImage = None,
    control_scale: options.ControlScale = None,
    ip_adapter: options.IpAdapter = None,
    ip_adapter_image: options.IpAdapterImage = None,
    ip_adapter_scale: options.IpAdapterScale = None,
    region: region_options.RegionTexts = None,
    regions: region_options.RegionsFile = None,
    feather: region_options.Feather = None,
    source: source_options.SourceName = None,
    fit: source_options.SourceFit = None,
    strength: source_options.Strength = None,
    mask: source_options.Mask = None,
    upscale: source_options.Upscale = None,
    fidelity: source_options.Fidelity = None,
    style_prompt: source_options.StylePrompt = None,
    style_image: source_options.StyleImage = None,
    style_strength: source_options.StyleStrength = None,
    bit_depth: options.BitDepth = None,
    dpi: options.Dpi = None,
    priority: options.PriorityLevel = None,
    start_within: options.StartWithin = None,
    finish_within: options.FinishWithin = None,
    dzi: options.DeepZoom = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Generate one picture, on a running server or on a stack started for this call."""
    prompt = options.choose_prompt(prompt, source)
    path = require_place(output or options.name_after(prompt))
    begun, sent = source_options.read_source(source, fit, strength, mask, upscale, fidelity)
    styled, seen = source_options.read_style(style_prompt, style_image, style_strength)
    sides = options.parse_size(size) if size else (None, None)
    chosen = region_options.read_regions(region, regions, feather)
    pictures = options.name_pictures(control_image, ip_adapter_image) | chosen.masks | sent | seen
    given: Given = {
        **pictures,
        **chosen.texts,
        **options.tell_loras(lora),
        "advanced.guidance_interval": guidance_interval,
        "mask": mask,
        "style": style_prompt or f"--style-image {style_image}",
        "style.style_image": style_image,
    }
    request = options.build_request(
        {
            "prompt": prompt,
            "negative_prompt": negative,
            "width_px": sides[0],
            "height_px": sides[1],
            "seamless": seamless,
            "layout": layout,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance,
            "advanced": options.name_advanced(guidance_interval),
            "model": model,
            "loras": [options.parse_lora(text) for text in lora] if lora else None,
            "control": options.name_add_on(
                "control", control, control_scale, control_image, shows_source=source is not None
            ),
            "ip_adapter": options.name_add_on("ip-adapter", ip_adapter, ip_adapter_scale, ip_adapter_image),
            "regions": chosen.regions or None,
            "output_format": options.find_format(path),
            "bit_depth": bit_depth,
            "dpi": dpi,
            **options.name_urgency(priority, start_within, finish_within),
            **begun,
            **styled,
        },
        given,
    )
    with open_server(url, data) as address, Client(address, api_key=key) as client:
        with naming_options(given):
            job = once_served(lambda: client.create(request, pictures=pictures))
        with telling_what_is_kept(client, job):
            follow_job(client, job, path, dzi=dzi)


@app.command()
def jobs(
    status: Annotated[JobStatus | None, typed(JobStatus, help="Only jobs with this status.")] = None,
    limit: Annotated[int, typed(JobCount, help="Number of jobs, at most 100.")] = 20,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """List jobs, newest first."""
    with Client(find_server(url, data), api_key=key) as client:
        print_table(lay_jobs(client.list(status=status, limit=limit).data))


@app.command()
def cancel(
    job_id: Annotated[str, Argument(metavar="ID")], url: Url = None, key: Key = None, data: Data = None
) -> None:
    """Cancel a job."""
    with Client(find_server(url, data), api_key=key) as client:
        job = client.cancel(job_id)
    print(f"job {job.id} {'stops within one step' if job.status == 'processing' else 'is ' + job.status}")


def _tell_retry(error: ChoraleError) -> str:
    wait_s = error.retry_after_s if isinstance(error, ProblemError) else None
    return "" if wait_s is None else f"; try again in {wait_s:g} s"


def _say_error(message: str) -> None:
    open_notes().print(
        f"chorale: {show(message)}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
