"""The command line: ``python -m moe_lab <command>``, installed as ``moe-lab``."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from moe_lab import doctor
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.paths import check_file, check_folder, check_new_or_ours, printable, shown
from moe_lab.writing import CannotWrite, check_writable

AS_JSON = (dict, list, bool)  # types that the command line takes as JSON: {"score": "sigmoid"}, [0, 4], true


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 only if it did what was asked."""
    parser = argparse.ArgumentParser(prog="moe-lab", description="A laboratory for Mixture-of-Experts layers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_doctor(commands)
    add_train(commands)
    add_export(commands)
    add_count(commands)
    add_grade(commands)
    add_bench(commands)
    add_profile(commands)
    add_compile(commands)
    add_experiment(commands)
    add_scoreboard(commands)
    add_notebooks(commands)
    add_site(commands)
    options = parser.parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()  # here, where a full disk can still be told of
        return code
    except BrokenPipeError:  # who read this, `head` perhaps, has seen enough
        _say_no_more()
        return 0
    except CannotWrite as error:
        where = getattr(options, "elsewhere", "")
        print(printable(f"moe-lab {options.command}: {error}{where and f' ({where})'}"), file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(printable(f"moe-lab {options.command}: {error}"), file=sys.stderr)
        _say_no_more()
        return 1
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        print(f"moe-lab {options.command}: a package wants a home folder ({error}); set HOME", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"moe-lab {options.command}: stopped", file=sys.stderr)
        return 130


def _say_no_more() -> None:
    """Drop what could not be printed, or Python tries again at its end, and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_doctor(commands) -> None:
    """``doctor``: what this machine can run."""
    parser = commands.add_parser("doctor", help="say what this machine can run, and how to get what is missing")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run_doctor)


def run_doctor(options) -> int:
    """Print the findings; fails only if the lessons cannot run."""
    findings = doctor.examine()
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        print(doctor.describe(findings))
    return 0 if doctor.lessons_run(findings) else 1


def add_train(commands) -> None:
    """``train``: the small language model. Options come from the two config classes."""
    parser = commands.add_parser(
        "train",
        help="train the small language model on the standard library's source",
        description="Goes on from the newest checkpoint in OUT, if there is one. Ctrl-C or a kill loses little.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/first"), help="folder for the checkpoints")
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints in OUT and start over")
    parser.add_argument("--export", type=Path, help="also write the trained model to this folder, without optimiser")
    ranks = parser.add_argument_group("on several ranks", "torchrun --nproc-per-node N -m moe_lab train ...")
    ranks.add_argument(
        "--expert-parallel", type=int, default=0, metavar="INT", help="ranks that share the experts; all of them if 0"
    )
    ranks.add_argument(
        "--rank-timeout", type=float, default=60, metavar="SECONDS", help="how long a rank waits for the others"
    )
    for kind in (LanguageModelConfig, TrainConfig):
        group = parser.add_argument_group(kind.__name__)
        for field in dataclasses.fields(kind):
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=json.loads if field.type in AS_JSON else field.type,
                default=field.default if field.default is not dataclasses.MISSING else field.default_factory(),
                metavar="JSON" if field.type in AS_JSON else field.type.__name__.upper(),
                help=field.metadata["help"],
            )
    parser.set_defaults(run=run_train, elsewhere="--out and --export name the places")


def run_train(options) -> int:
    """Train, then say where the result is."""
    model_config, config = (
        kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})
        for kind in (LanguageModelConfig, TrainConfig)
    )
    from moe_lab.train import check_export, export, train  # torch takes seconds, and wrong options are known by now

    if options.export:
        check_export(options.export)
    if "WORLD_SIZE" in os.environ:
        leads, trained = _train_as_rank(model_config, config, options)
        if not leads:
            return 0
    elif options.expert_parallel > 1:
        raise ValueError(
            f"--expert-parallel {options.expert_parallel} needs as many ranks: start them with "
            f"torchrun --nproc-per-node {options.expert_parallel} -m moe_lab train ..."
        )
    else:
        trained = train(model_config, config, options.out, fresh=options.fresh)
    print(f"trained: {shown(trained)}")
    if options.export:
        loss = export(options.out, options.export)
        print(f"exported: {shown(options.export)}, validation loss {loss:.4f} nats a byte")
    return 0


def _train_as_rank(model_config: LanguageModelConfig, config: TrainConfig, options) -> tuple[bool, Path]:
    """Train as one of torchrun's ranks; whether this is the one that speaks, and the last checkpoint."""
    from moe_lab.parallel.group import RankLost, joined, place_among_ranks
    from moe_lab.parallel.trainer import check_ranks, train_on_ranks

    rank, ranks = place_among_ranks()
    expert_ranks = options.expert_parallel or ranks
    check_ranks(model_config, config, ranks, expert_ranks)
    fresh = options.fresh and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"  # a restart goes on
    try:
        with joined(options.rank_timeout):
            return rank == 0, train_on_ranks(model_config, config, options.out, expert_ranks=expert_ranks, fresh=fresh)
    except RankLost as error:
        raise RankLost(f"{error}; start all ranks again to go on from the last checkpoint in {options.out}") from error


def add_export(commands) -> None:
    """``export``: our model as a model of Transformers."""
    parser = commands.add_parser(
        "export",
        help="write the small language model as a model of Transformers",
        description="Config, safetensors and a tokenizer of bytes. After `import moe_lab.hf`, "
        "AutoModelForCausalLM.from_pretrained(FOLDER) loads it.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new, empty, or an earlier export")
    parser.add_argument("--model", type=Path, help="what train --export wrote; the model of the lessons if left out")
    parser.set_defaults(run=run_export, elsewhere="FOLDER names the place")


def run_export(options) -> int:
    """Write it, then say how it is read."""
    from moe_lab.hf import export
    from moe_lab.lm import SHIPPED, load_model

    folder = export(load_model(check_folder(options.model or SHIPPED, "--model")), options.folder)
    print(f"exported: {shown(folder)}; read it with moe_lab.hf.load({str(folder)!r})")
    return 0


def add_count(commands) -> None:
    """``count``: parameters, FLOPs and bytes of a model from its config."""
    parser = commands.add_parser(
        "count",
        help="count a model's parameters, FLOPs and bytes from its config.json",
        description="Counts from the config alone, without building the model. A published model is held against what "
        "its makers printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="?", metavar="PATH|NAME", help="a config.json, its folder, or a published model"
    )
    parser.add_argument(
        "--embeddings",
        choices=("both", "output", "none"),
        help="which embeddings count as active; both if left out, for a published model what its publisher did",
    )
    parser.add_argument("--context", type=int, default=4096, help="tokens that a token attends to")
    parser.add_argument("--list", action="store_true", help="name the published models and the families, and stop")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run_count)


def run_count(options) -> int:
    """Print the table; of a published model, its figures too."""
    from moe_lab.accounting.compare import compare, describe
    from moe_lab.accounting.counts import count
    from moe_lab.accounting.families import FAMILIES
    from moe_lab.accounting.reading import is_name
    from moe_lab.models import published_models

    if options.list:
        known = {"published models": published_models(), "families, by model_type": sorted(FAMILIES)}
        text = (
            json.dumps(known, indent=2) if options.json else "\n".join(f"{k}: {', '.join(v)}" for k, v in known.items())
        )
        print(text)
        return 0
    if options.config is None:
        raise ValueError("which model? Give the path of a config.json or a name; --list has the names")
    counts, figures = compare(options.config) if is_name(options.config) else (count(options.config), [])
    if options.embeddings is not None:
        counts = dataclasses.replace(counts, embeddings=options.embeddings)
    if options.json:
        shown = [{**dataclasses.asdict(figure), "verdict": figure.verdict} for figure in figures]
        print(json.dumps({**counts.as_dict(options.context), "published": shown}, indent=2))
    else:
        print("\n\n".join([counts.table(options.context), *([describe(figures)] if figures else [])]))
    return 0


def add_grade(commands) -> None:
    """``grade``: a design against a brief of lesson 15."""
    parser = commands.add_parser(
        "grade",
        help="hold a design of a model against the budgets of a brief",
        description="DESIGN is a JSON object: config (that of a model), and where wanted method, options, dtype, "
        "devices, extra_experts. Counts are exact, times predicted. Fails where the design breaks a budget.",
    )
    parser.add_argument("design", type=Path, metavar="DESIGN", help="a JSON file")
    parser.add_argument("--brief", required=True, help="laptop, gpu or nodes")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run_grade)


def run_grade(options) -> int:
    """Print the report; fails unless every budget is kept."""
    from moe_lab.capstone import BRIEFS, grade, read_design

    if options.brief not in BRIEFS:
        raise ValueError(f"--brief must be one of {', '.join(BRIEFS)}; got {options.brief!r}")
    report = grade(read_design(check_file(options.design, "DESIGN")), BRIEFS[options.brief])
    print(report.to_json() if options.json else report)
    return 0 if report.passed else 1


def add_bench(commands) -> None:
    """``bench``: verify, time, record."""
    parser = commands.add_parser(
        "bench",
        help="time a suite against its rivals and record the run",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    suites = ("ceilings", "cpu", "routers", "dispatch", "exchange", "transformers", "watch", "layer")
    suites += ("decode", "align", "order")
    parser.add_argument("suite", choices=suites, nargs="?", default="cpu", help="what to time; the last four on a GPU")
    parser.add_argument("--minutes", type=float, default=10.0, help="what does not fit is recorded as not measured")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"), help="folder for the record")
    parser.add_argument("--no-record", action="store_true", help="print the table only; needs no clean tree")
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    elsewhere = "--out names the place of the record; cases wait in runs/bench below the folder where you start this"
    parser.set_defaults(run=run_bench, elsewhere=elsewhere)


def run_bench(options) -> int:
    """Run the suite; print its table and where the record is."""
    from moe_lab.bench import BASELINES, SUITES, run, show_table

    if not 0 < options.minutes < 1e6:
        raise ValueError(f"--minutes must be above 0, got {options.minutes:g}")
    cases = SUITES[options.suite](options.quick)
    rows, path = run(options.suite, cases, None if options.no_record else options.out, 60 * options.minutes)
    if options.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        print(show_table(rows, BASELINES.get(options.suite)))
        print(f"recorded: {shown(path)}" if path else "not recorded")
    return 0


def add_profile(commands) -> None:
    """``profile``: where the time of a layer goes."""
    parser = commands.add_parser(
        "profile",
        help="show where the time of a layer goes, operator by operator",
        description="Profiles one call of the layer, router included, and of the dense layer with the experts' FLOPs, "
        "on the GPU if there is one. Ceilings are measured in the same run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--shape",
        default="medium",
        help="small, medium, few experts, or tokens,d_model,d_expert,num_experts,top_k as numbers",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["grouped", "loop", "transformers", "dense"],
        choices=("grouped", "loop", "triton", "transformers", "dense"),
        help="what to profile; the others are compared with the last",
    )
    parser.add_argument("--direction", choices=("forward", "forward+backward"), default="forward", help="which passes")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of x and weights"
    )
    parser.add_argument("--threads", type=int, help="PyTorch's threads on a CPU; its own choice if left out")
    parser.add_argument("--repeats", type=int, default=5, help="calls; the one of median duration becomes the trace")
    parser.add_argument("--out", type=Path, help="write Chrome traces: a .json file for one backend, or a folder")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    parser.set_defaults(run=run_profile, elsewhere="--out names the place")


def run_profile(options) -> int:
    """Profile each backend; print the tables, and where the traces are."""
    if options.out and options.out.suffix == ".json" and len(options.backend) > 1:
        raise ValueError(f"--out {options.out} is one file, and {len(options.backend)} backends were asked for")
    import torch

    from moe_lab.checks import check_whole
    from moe_lab.profiling.layer import profile_layers, read_shape, trace_path
    from moe_lab.profiling.table import as_json, compare_traces, show_profile
    from moe_lab.profiling.trace import BEGINS

    shape = read_shape(options.shape)
    if options.out and options.out.suffix == ".json":
        check_writable(check_new_or_ours(options.out, BEGINS, "--out"))
    elif options.out:
        check_writable(options.out / "trace.json")
    if options.threads is not None:
        torch.set_num_threads(check_whole("threads", options.threads, 1))
    passes = options.backend, options.direction, options.dtype
    traces = profile_layers(shape, *passes, repeats=options.repeats, ceilings=_measured_rates(options.dtype))
    compared = [compare_traces(traces)] if len(traces) > 1 else []
    print(as_json(traces) if options.json else "\n\n".join([*map(show_profile, traces), *compared]))
    for trace in traces if options.out else ():
        print(f"written: {shown(trace.write(trace_path(options.out, trace)))}", file=sys.stderr)
    return 0


def _measured_rates(dtype: str) -> dict:
    """What this machine reaches in about a second of products and copies; empty where its products take too long."""
    from moe_lab.roofline import best_rates, measure_copies, measure_products

    products = measure_products(dtype, seconds=0.15, repeats=5)
    found = [*products, *measure_copies(2**28, 5)] if products else []
    rates = best_rates((one.dtype, one.flops, one.bytes, one.timing.p50_ms) for one in found) if found else ({}, None)
    return dict(zip(("flops_per_s", "bytes_per_s"), rates, strict=True))


def add_compile(commands) -> None:
    """``compile``: kernels to machine code for GPUs that are not here."""
    parser = commands.add_parser(
        "compile",
        help="compile the kernels for GPUs that are not here, and say what the compiler made",
        description="Compiles every kernel in every configuration for the targets that it is meant for; needs Triton "
        "and no GPU. Registers and spilled bytes are a thread's, shared bytes a program's. What was compiled before "
        "comes from Triton's cache.",
    )
    parser.add_argument("kernel", nargs="*", metavar="KERNEL", help="name of a file in kernels/; all if left out")
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="TARGET",
        help="sm_80, sm_90, sm_100, gfx942 or gfx950; all if left out",
    )
    parser.add_argument("--config", metavar="NAME", help="one name of the kernels' CONFIGS; all if left out")
    parser.add_argument("--folder", type=Path, help="another folder of kernel files than kernels/")
    parser.add_argument("--workers", type=int, help="processes that compile; one a core, at most 8, if left out")
    parser.add_argument("--against", type=Path, metavar="FILE", help="fail if anything is worse than in this record")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the rows of everything to this file as well")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=run_compile, elsewhere="--record and the variable TRITON_CACHE_DIR name the places")


def run_compile(options) -> int:
    """Print the rows; fails unless every one compiled, and none is worse than recorded."""
    from moe_lab.machine_code import compare, compile_kernels, describe, read_record, select_rows, write_record
    from moe_lab.machine_code.record import BEGINS

    asked = options.kernel, options.target, options.config
    if options.record and any(asked):
        raise ValueError("--record is for everything: leave out KERNEL, --target and --config")
    if options.record:
        check_writable(check_new_or_ours(options.record, BEGINS, "--record"))
    before, recorded = read_record(check_file(options.against, "--against")) if options.against else (None, [])
    triton, rows = compile_kernels(*asked, folder=options.folder, workers=options.workers)
    print(json.dumps([row.as_dict() for row in rows], indent=2) if options.json else describe(rows))
    worse = compare(select_rows(recorded, *asked), rows) if options.against else []
    if worse:
        print(f"worse than recorded (Triton {before} then, {triton} now):", *worse, sep="\n  ", file=sys.stderr)
    if options.record:
        write_record(options.record, triton, rows)
        print(f"recorded: {shown(options.record)}", file=sys.stderr)
    return 0 if all(row.ok for row in rows) and not worse else 1


def add_experiment(commands) -> None:
    """``experiment``: a grid of small training runs."""
    parser = commands.add_parser(
        "experiment",
        help="train a grid of small models and write its record",
        description="Trains what OUT does not hold yet, then writes the record. A kill costs one run of `balance`, and "
        "some hundred steps of `dense_vs_moe`.",
    )
    parser.add_argument("name", choices=("balance", "dense_vs_moe"), help="which grid")
    parser.add_argument("--out", type=Path, help="folder for the single runs; runs/NAME if left out")
    parser.add_argument("--record", type=Path, help="file for the record; runs/NAME.json if left out")
    balance = parser.add_argument_group("balance")
    balance.add_argument("--steps", type=int, help="steps of each run, to try it out; the grid's own if left out")
    balance.add_argument("--only", default="", help="one method of the grid; all if left out")
    against = parser.add_argument_group("dense_vs_moe")
    against.add_argument("--preset", default="laptop", help="laptop, quick (two minutes) or gpu (default: laptop)")
    against.add_argument(
        "--quick", action="store_const", const="quick", dest="preset", help="the same as --preset quick"
    )
    against.add_argument("--part", nargs="+", help="tuning, race, scaling or architectures; all if left out")
    against.add_argument("--workers", type=int, help="runs at the same time; one a core if left out")
    parser.set_defaults(run=run_experiment, elsewhere="--out and --record name the places")


def run_experiment(options) -> int:
    """Run the grid, then say where the record is."""
    name = options.name if options.preset == "laptop" else f"{options.name}-{options.preset}"
    out, path = options.out or Path("runs") / name, options.record or Path("runs") / f"{name}.json"
    check_writable(path)
    if options.name == "balance":
        from moe_lab.experiments.balance import write_record

        print(f"recorded: {shown(write_record(out, path, options.steps, options.only))}")
    else:
        from moe_lab.experiments.dense_vs_moe import PARTS
        from moe_lab.experiments.recorded import describe, read_record, write_record

        write_record(options.preset, out, path, tuple(options.part or PARTS), options.workers)
        print(describe(read_record(path)))
        print(f"recorded: {shown(path)}")
    return 0


def add_scoreboard(commands) -> None:
    """``scoreboard``: the claims that this lab began from, and what the records say of them."""
    parser = commands.add_parser(
        "scoreboard",
        help="show claims about MoE beside what was measured here, and a verdict",
        description="One metric a row, nothing ranked across rows. Values come from the records in DATA; where one is "
        "missing, the cell says so.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON, every value included")
    form.add_argument("--markdown", action="store_true", help="print the table of the README")
    form.add_argument("--write", type=Path, metavar="FILE", help="put that table between the markers of this file")
    parser.add_argument("--data", type=Path, help="folder of the records; the project's own if left out")
    parser.set_defaults(run=run_scoreboard, elsewhere="--write names the file; without it the table is printed")


def run_scoreboard(options) -> int:
    """Print the table, or write it."""
    from moe_lab.scoreboard import DATA, as_json, as_markdown, as_text, make_rows, write_table
    from moe_lab.scoreboard.page import read_page

    data = options.data or DATA
    if not data.is_dir():
        raise FileNotFoundError(f"--data: {data} is no folder of records")
    if options.write:
        read_page(check_file(options.write, "--write"))
    rows = make_rows(data)
    if options.write:
        print(f"{shown(options.write)}: {'written' if write_table(options.write, rows) else 'was up to date'}")
    else:
        print((as_json if options.json else as_markdown if options.markdown else as_text)(rows))
    return 0


def add_notebooks(commands) -> None:
    """``notebooks``: run the lessons and write their outputs."""
    parser = commands.add_parser("notebooks", help="run the lessons top to bottom and write their outputs")
    parser.add_argument("only", nargs="?", default="", help="the beginning of a file name, such as 01; all if left out")
    parser.set_defaults(run=run_notebooks, elsewhere="lessons are written where they lie: copy the project")


def run_notebooks(options) -> int:
    """Run them; an error in a cell is shown whole."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from moe_lab.notebooks import execute_all

    try:
        execute_all(options.only)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, NoSuchKernel) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def add_site(commands) -> None:
    """``site``: the lessons as pages that need no kernel."""
    parser = commands.add_parser(
        "site",
        help="write the lessons as a static site, whose widgets work without a kernel",
        description="Outputs are those that the notebooks hold; of the code, only what leads to a widget runs. Open "
        "OUT/index.html in a browser, or put the folder on any web server.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("site"), help="folder of the site; an older one is replaced")
    parser.set_defaults(run=run_site, elsewhere="--out names the place")


def run_site(options) -> int:
    """Build it, or say what is in the way and leave the old one."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # lesson 09 would time a GPU, and no two sites would be the same
    from moe_lab.site import build

    pages = build(options.out)
    megabytes = sum(page.stat().st_size for page in pages) / 1e6
    print(f"written: {len(pages)} pages, {megabytes:.1f} MB; open {shown(options.out / 'index.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
