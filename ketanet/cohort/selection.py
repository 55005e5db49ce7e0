"""Choosing subjects by an expression over their columns.

Expressions come from study files and command lines, so they are parsed by a small language of our own: column names,
literals, comparisons, ``in``, ``and``, ``or``, ``not``. Nothing is ever executed as Python.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.errors import InputError

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "column names, literals, comparisons, in, and / or / not"


def evaluate(expression: str, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Truth of an expression for every subject.

    Parameters
    ----------
    expression : str
        Such as ``"group == 'MDD' and mean_fd < 0.5"``.
    columns : mapping of str to array (subject,)

    Returns
    -------
    bool array (subject,)

    Raises
    ------
    InputError
        The expression does not parse, names an unknown column, compares text with a number, or holds anything but
        column names, literals, comparisons and logic (no calls, no attributes).

    Examples
    --------
    >>> import numpy as np
    >>> columns = {"group": np.array(["a", "b", "c"]), "age": np.array([30, 50, 20])}
    >>> evaluate("group in ('a', 'b') and not age > 40", columns)
    array([ True, False, False])
    """
    try:
        parsed = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the expression {expression!r} cannot be read; it may hold {_ALLOWED}") from error
    size = len(next(iter(columns.values()))) if columns else 0
    try:
        result = _truth(parsed, columns, expression)
    except RecursionError as error:
        raise InputError("the expression is nested too deeply") from error
    return np.broadcast_to(result, (size,)).copy()


def _value(node: ast.expr, columns: Mapping[str, NDArray[Any]], text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name):
            return _column(name, columns)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(operand, columns, text)
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return join.reduce(np.broadcast_arrays(*[_truth(value, columns, text) for value in values]))
        case ast.Compare():
            return _comparison(node, columns, text)
    raise InputError(f"{ast.unparse(node)!r} is not allowed in the expression {text!r}; it may hold {_ALLOWED}")


def _truth(node: ast.expr, columns: Mapping[str, NDArray[Any]], text: str) -> NDArray[np.bool_]:
    value = np.asarray(_value(node, columns, text))
    if value.dtype != bool:
        raise InputError(f"{ast.unparse(node)!r} in {text!r} is not a condition; compare it with a value")
    return value


def _comparison(node: ast.Compare, columns: Mapping[str, NDArray[Any]], text: str) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.asarray(True)
    left = _value(node.left, columns, text)
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, ast.In | ast.NotIn):
            found = _is_among(left, right_node, columns, text)
            step, right = (~found if isinstance(op, ast.NotIn) else found), None
        elif type(op) in _COMPARE:
            right = _value(right_node, columns, text)
            step = _compare(_COMPARE[type(op)], left, right, text)
        else:
            raise InputError(f"'is' is not allowed in the expression {text!r}; it may hold {_ALLOWED}")
        result = result & step
        left = right
    return result


def _is_among(left: Any, listed: ast.expr, columns: Mapping[str, NDArray[Any]], text: str) -> NDArray[np.bool_]:
    """Whether each value is one of a list of literals or columns."""
    if not isinstance(listed, ast.Tuple | ast.List | ast.Set):
        raise InputError(f"'in' needs a list in {text!r}, such as group in ('a', 'b')")
    found = np.zeros(np.shape(left), bool)
    for item in listed.elts:
        if not isinstance(item, ast.Constant | ast.Name | ast.UnaryOp):
            raise InputError(f"{ast.unparse(item)!r} stands in a list in {text!r}; a list holds literals and columns")
        found = found | _compare(operator.eq, left, _value(item, columns, text), text)
    return found


def _compare(op: Callable[[Any, Any], Any], left: Any, right: Any, text: str) -> NDArray[np.bool_]:
    if left is None or right is None:
        raise InputError(f"the expression {text!r} goes on after 'in'; put it in parentheses")
    a, b = np.asarray(left), np.asarray(right)
    if (a.dtype.kind in "OTU") != (b.dtype.kind in "OTU"):
        raise InputError(f"the expression {text!r} compares text with a number; quote text, and only text")
    return np.asarray(op(a, b), dtype=bool)


def _column(name: str, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"there is no subject column {name!r}{hint} (columns: {', '.join(columns)})")


def subject_columns(cohort: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Columns that an expression may use, by name: arrays (subject,)."""
    return {
        str(name): np.asarray(values.values)
        for name, values in cohort.coords.items()
        if values.dims == ("subject",) and name != "row"
    }


def select(cohort: xr.Dataset, where: str | None) -> xr.Dataset:
    """Subjects of a cohort for which an expression holds.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`open_cohort` gives it.
    where : str or None
        Expression over the subject columns; None keeps everyone.

    Returns
    -------
    xarray.Dataset
        A lazy view; nothing is read.

    Raises
    ------
    InputError
        As :func:`evaluate`, or nobody is left.
    """
    if where is None:
        return cohort
    keep = evaluate(where, subject_columns(cohort))
    if not keep.any():
        raise InputError(f"no subject fulfils {where!r}")
    return cohort.isel(subject=np.flatnonzero(keep))
