"""What a lesson runs on the way to a widget, and nothing else of it: no training, no timing, no figure.

A notebook keeps a widget's sentence and not its state. So the state is made again when the site is built, by the
lesson's own statements: those whose names the widget's cell needs, found from the last to the first.
"""

import ast
import symtable
from dataclasses import dataclass

import nbformat

VIEW = "application/vnd.jupyter.widget-view+json"
SHOWING = {"print", "ml.show", "ml.check", "ml.hint", "ml.progress", "ml.solution", "display"}
"""Calls that change nothing: a reader sees what they show, and a widget needs none of it."""


@dataclass(frozen=True)
class WidgetProgram:
    """The statements that make one widget of a lesson, and what the notebook says it shows."""

    cell: int
    source: str
    expression: str
    sentence: str


@dataclass(frozen=True)
class _Statement:
    source: str
    binds: frozenset[str]
    touches: frozenset[str]
    reads: frozenset[str]
    later: frozenset[str]
    replaces: bool
    imports: bool


def widget_programs(notebook: nbformat.NotebookNode) -> list[WidgetProgram]:
    """Find every cell whose last expression is a widget, with the statements that lead to it.

    A statement is kept if it binds, or calls something on, a name that is needed further down; what it reads is then
    needed too. Calls on imported modules alone, such as ``ml.start``, set things up and are always kept.

    Example:
        >>> from nbformat.v4 import new_code_cell, new_notebook, new_output
        >>> shown = new_output("execute_result", {"text/plain": "Bins: 3.", VIEW: {}}, execution_count=2)
        >>> cells = [new_code_cell("size = 3\\nother = slow()"), new_code_cell("Bins(size)", outputs=[shown])]
        >>> widget_programs(new_notebook(cells=cells))
        [WidgetProgram(cell=1, source='size = 3', expression='Bins(size)', sentence='Bins: 3.')]

    Raises ValueError for a widget that is not its cell's last expression: nothing could be built for it.
    """
    before, found = [], []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        sentences = ["".join(output.data["text/plain"]) for output in cell.outputs if VIEW in output.get("data", {})]
        if sentences:
            if len(sentences) > 1 or not isinstance(body[-1], ast.Expr):
                raise ValueError(f"cell {number} must show one widget, as its last expression")
            wanted = [*before, *_read(body[:-1])]
            expression = ast.unparse(body[-1])
            source = "\n".join(statement.source for statement in _needed(wanted, _names(body[-1])[1]))
            found.append(WidgetProgram(number, source, expression, sentences[0]))
        before += _read(body)
    return found


def _needed(statements: list[_Statement], names: frozenset[str]) -> list[_Statement]:
    """Walk back from the names; again with what functions read when called: of those every binding is kept."""
    imported = frozenset().union(*(one.binds for one in statements if one.imports))
    more = frozenset()
    while True:
        needed, kept = {*names, *more}, []
        for one in reversed(statements):
            if one.binds & needed or (one.touches - imported) & needed or (one.touches and one.touches <= imported):
                kept.append(one)
                needed -= one.binds - more if one.replaces else set()
                needed |= one.reads
        later = frozenset().union(*(one.later for one in kept))
        if later <= more:
            return kept[::-1]
        more |= later


class _Silent(ast.NodeTransformer):
    """Leave out what only shows something; a loop that does nothing else then binds nothing that is needed."""

    def visit_Expr(self, node):
        silent = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in SHOWING
        return ast.copy_location(ast.Pass(), node) if silent else node


def _read(body: list[ast.stmt]) -> list[_Statement]:
    return [_describe(silent) for node in body if not isinstance(silent := _Silent().visit(node), ast.Pass)]


def _describe(node: ast.stmt) -> _Statement:
    binds, reads, later = _names(node)
    inside = [] if isinstance(node, ast.FunctionDef | ast.ClassDef) else list(ast.walk(node))
    calls = [part.value.func for part in inside if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call)]
    stores = [p for p in inside if isinstance(p, ast.Subscript | ast.Attribute) and isinstance(p.ctx, ast.Store)]
    return _Statement(
        ast.unparse(node),
        binds,
        frozenset(filter(None, map(_owner, calls + stores))),
        reads,
        later,
        isinstance(node, ast.Assign | ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom),
        isinstance(node, ast.Import | ast.ImportFrom),
    )


def _names(node: ast.stmt) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Names that a statement binds, that it reads at once, and that the functions in it may read when called."""
    table = symtable.symtable(ast.unparse(node), "cell", "exec")
    symbols = table.get_symbols()
    binds = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    reads = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    later, inner = set(), table.get_children()
    while inner:
        child = inner.pop()
        inner += child.get_children()
        later |= {symbol.get_name() for symbol in child.get_symbols() if symbol.is_global()}
    return frozenset(binds), frozenset(reads), frozenset(later)


def _owner(node: ast.expr) -> str | None:
    """The name at the root of ``a.b[c].d``, or of a call on it."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
