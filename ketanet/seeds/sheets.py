"""Rows of cells from text and Excel files, numbered as a person sees them."""

from __future__ import annotations

import csv
import datetime
import io
import warnings
from pathlib import Path
from typing import Any, Final, TypeAlias

from ketanet.errors import InputError
from ketanet.seeds.values import is_empty

Row: TypeAlias = tuple[int, list[Any]]
"""Row number, from 1, and cells."""

EXCEL: Final = (".xlsx", ".xls")
DELIMITED: Final = (".tsv", ".csv")

_OLE2 = b"\xd0\xcf\x11\xe0"
_ZIP = b"PK\x03\x04"


def read_bytes(path: Path) -> bytes:
    """Content of a file that must hold something."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty")
    return content


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_sheet(path: Path) -> list[Row]:
    """Rows of a TSV or CSV file or of the first sheet of an Excel file, without those that hold nothing.

    Raises
    ------
    InputError
        The file is missing, empty, damaged or of another type.
    """
    suffix = path.suffix.lower()
    if suffix in EXCEL:
        rows = _excel_rows(path)
    elif suffix in DELIMITED:
        rows = _delimited_rows(path)
    else:
        raise InputError(
            f"{path}: type {suffix or 'without extension'!r} is not a table; allowed: .tsv .csv .xlsx .xls"
        )
    filled = [(number, cells) for number, cells in rows if not all(map(is_empty, cells))]
    if not filled:
        raise InputError(f"{path}: the table is empty")
    return filled


def _delimited_rows(path: Path) -> list[Row]:
    text = read_text(path)
    header = text.lstrip().splitlines()[0]
    # Excel writes a CSV with semicolons where the comma is the decimal sign.
    delimiter = max("\t,;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    first = 1
    try:
        for cells in reader:
            rows.append((first, list(cells)))
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, row {first}: not a readable table ({error}); check the quotation marks") from error
    return rows


def _excel_rows(path: Path) -> list[Row]:
    content = read_bytes(path)
    # By content, not by name: files are renamed between the two formats.
    if content.startswith(_ZIP):
        reader = _xlsx_cells
    elif content.startswith(_OLE2):
        reader = _xls_cells
    else:
        raise InputError(f"{path}: not an Excel file, whatever its name says; save it as .xlsx")
    try:
        cells = reader(content)
    except Exception as error:  # the two readers raise whatever a damaged file makes them stumble over
        raise InputError(f"{path}: truncated or damaged Excel file ({type(error).__name__}); save it again") from error
    return list(enumerate(cells, start=1))


def _xlsx_cells(content: bytes) -> list[list[Any]]:
    import openpyxl

    with warnings.catch_warnings():
        # openpyxl warns of styles and validations that it drops; only values matter here
        warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")
        book = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
    return [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]


def _xls_cells(content: bytes) -> list[list[Any]]:
    import xlrd

    book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO())
    sheet = book.sheet_by_index(0)

    def value_of(cell: Any) -> Any:
        # xlrd gives errors and dates as plain numbers, which would pass as coordinates
        if cell.ctype == xlrd.XL_CELL_ERROR:
            return xlrd.error_text_from_code.get(cell.value, "#ERROR")
        if cell.ctype == xlrd.XL_CELL_DATE:
            moment: datetime.datetime = xlrd.xldate_as_datetime(cell.value, book.datemode)
            return moment
        return bool(cell.value) if cell.ctype == xlrd.XL_CELL_BOOLEAN else cell.value

    return [[value_of(cell) for cell in sheet.row(index)] for index in range(sheet.nrows)]
