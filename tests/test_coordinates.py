"""Reading published coordinates: every format, every bad input."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
import xlwt

from ketanet.errors import InputError, KetanetWarning
from ketanet.seeds import mni_to_talairach, read_coordinates, talairach_to_mni

HEADER = ["source_study", "contrast", "direction", "space", "x", "y", "z"]
ROWS = [
    ["Ma2020", "A+B", "increase", "MNI", -12.5, 30, 4],
    ["Ma2020", "A+B", "increase", "MNI", 12, 30, 4],
    ["Li 2015", "A-B", "decrease", "TAL", 1, 2, 3],
]
LANCASTER = np.array(
    [
        [0.9254, 0.0024, -0.0118, -1.0207],
        [-0.0048, 0.9316, -0.0871, -1.7667],
        [0.0152, 0.0883, 0.8924, 4.0926],
    ]
)


def write_xlsx(path: Path, rows: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def write_xls(path: Path, rows: list[list[object]]) -> Path:
    book = xlwt.Workbook()
    sheet = book.add_sheet("first")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            sheet.write(i, j, value)
    book.save(str(path))
    return path


def write_text(path: Path, rows: list[list[object]], separator: str = "\t") -> Path:
    path.write_text("\n".join(separator.join(map(str, row)) for row in rows) + "\n", encoding="utf-8")
    return path


def table(tmp_path: Path, *rows: list[object], header: list[str] | None = None) -> Path:
    return write_text(tmp_path / "peaks.tsv", [header or HEADER, *(rows or ROWS)])


def changed(**values: object) -> list[object]:
    return [values.get(name, cell) for name, cell in zip(HEADER, ROWS[0], strict=True)]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A laboratory's folder: two directions, three contrasts, a lock file and a folder of something else."""
    for name in ("increase", "decrease", "drafts"):
        (tmp_path / "lab" / name).mkdir(parents=True)
    root = tmp_path / "lab"
    write_xlsx(root / "increase" / "P1_A+B.xlsx", [[1, 2, 3, "P1_1"], [-4.5, 5, 6, "P1_2"]])
    write_xls(root / "increase" / "P2.xls", [[7, 8, 9, "P2_1"]])
    write_xlsx(root / "decrease" / "P1_A+B.xlsx", [["x", "y", "z"], [10, 11, 12]])
    write_xlsx(root / "drafts" / "old.xlsx", [["not", "a", "number"]])
    (root / "increase" / "~$P2.xls").write_bytes(b"lock")
    return root


def error(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_coordinates(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- tables


@pytest.mark.parametrize("kind", ["tsv", "csv", "semicolon", "xlsx", "xls"])
def test_the_same_table_in_every_format(tmp_path, kind):
    header = [*HEADER, "n", "note", "doi"]
    rows = [
        [*row, n, note, doi]
        for row, n, note, doi in zip(ROWS, (18, 18, ""), ("a, b; c", "n/a", ""), ("10.1/x",) * 3, strict=True)
    ]
    path = tmp_path / f"peaks.{'csv' if kind == 'semicolon' else kind}"
    if kind in ("xlsx", "xls"):
        {"xlsx": write_xlsx, "xls": write_xls}[kind](path, [header, *rows])
    else:
        separator = {"tsv": "\t", "csv": ",", "semicolon": ";"}[kind]
        pd.DataFrame(rows, columns=header).to_csv(path, sep=separator, index=False)
    found = read_coordinates(path)
    assert list(found.columns) == [*HEADER, "n", "note", "doi"]
    assert found["source_study"].tolist() == ["Ma2020", "Ma2020", "Li 2015"]
    assert found["contrast"].tolist() == ["A+B", "A+B", "A-B"]
    assert found["direction"].tolist() == ["increase", "increase", "decrease"]
    assert found["space"].tolist() == ["MNI", "MNI", "Talairach"]
    np.testing.assert_array_equal(found[["x", "y", "z"]], [[-12.5, 30, 4], [12, 30, 4], [1, 2, 3]])
    assert found["x"].dtype == np.float64
    np.testing.assert_array_equal(found["n"], [18, 18, np.nan])
    assert found["note"].iloc[0] == "a, b; c"
    assert found["note"].iloc[1:].isna().all()


def test_ketamine_peaks(data):
    found = read_coordinates(data / "coordinates" / "ketamine.tsv")
    contrasts = found.drop_duplicates(["source_study", "contrast", "direction"])
    assert len(found) == 57
    assert contrasts["direction"].value_counts().to_dict() == {"increase": 6, "decrease": 5}
    plain = pd.read_csv(data / "coordinates" / "ketamine.tsv", sep="\t")
    pd.testing.assert_frame_equal(found, plain, check_dtype=False)


def test_peaks_without_direction(data, tmp_path):
    path = data / "coordinates" / "ketamine_no_direction.tsv"
    assert "column contrast, direction is missing" in error(path)
    peaks = pd.read_csv(path, sep="\t").assign(contrast="emotion")
    peaks.to_csv(tmp_path / "named.tsv", sep="\t", index=False)
    found = read_coordinates(tmp_path / "named.tsv", direction="decrease")
    assert len(found) == 23
    assert set(found["direction"]) == {"decrease"}
    assert set(found["space"]) == {"Talairach"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("MNI", "MNI"),
        ("mni152", "MNI"),
        ("Talairach", "Talairach"),
        ("tal", "Talairach"),
        ("TLRC", "Talairach"),
    ],
)
def test_names_of_spaces(tmp_path, written, meant):
    assert read_coordinates(table(tmp_path, changed(space=written)))["space"].tolist() == [meant]


def test_what_the_source_does_not_state_can_be_given(tmp_path):
    bare = ["source_study", "contrast", "x", "y", "z"]
    path = table(tmp_path, ["A", "a", 1, 2, 3], header=bare)
    found = read_coordinates(path, direction="decrease", space="tal")
    assert found["direction"].tolist() == ["decrease"]
    assert found["space"].tolist() == ["Talairach"]
    assert "direction, space is missing" in error(path)
    unknown = table(tmp_path, changed(space="UNKNOWN"), changed(space="TAL", x=2))
    assert "row 2, column space: space is 'UNKNOWN'" in error(unknown)
    assert read_coordinates(unknown, space="MNI")["space"].tolist() == ["MNI", "Talairach"]


def test_text_as_people_write_it(tmp_path):
    path = tmp_path / "peaks.tsv"
    path.write_text(
        "\ufeffSource_Study\tcontrast\tdirection\tspace\tX\tY\tZ\r\n\r\n"
        " 2015 \tA\tincrease\tMNI\t\u221212\t+3\t1e1\r\n",
        encoding="utf-8",
    )
    found = read_coordinates(path)
    assert found[HEADER].iloc[0].tolist() == ["2015", "A", "increase", "MNI", -12.0, 3.0, 10.0]


def test_a_year_in_excel_stays_a_year(tmp_path):
    for path in (
        write_xls(tmp_path / "a.xls", [HEADER, [2015, 7, "increase", "MNI", 1, 2, 3]]),
        write_xlsx(tmp_path / "a.xlsx", [HEADER, [2015, 7.0, "increase", "MNI", 1, 2, 3]]),
    ):
        assert read_coordinates(path)[HEADER].iloc[0, :2].tolist() == ["2015", "7"]


def test_an_excel_file_under_the_name_of_the_other_format(tmp_path):
    write_xlsx(tmp_path / "a.xlsx", [HEADER, *ROWS]).rename(tmp_path / "a.xls")
    assert len(read_coordinates(tmp_path / "a.xls")) == 3


def test_any_two_labels_can_be_the_directions(tmp_path):
    path = table(tmp_path, changed(direction="hyper"), changed(direction="hypo"))
    assert "row 2, column direction: direction is 'hyper'; allowed: increase, decrease" in error(path)
    assert len(read_coordinates(path, directions=["hypo", "hyper"])) == 2
    assert len(read_coordinates(path, directions=None)) == 2


# --- bad tables


@pytest.mark.parametrize("name", HEADER)
def test_a_missing_column_is_named(tmp_path, name):
    keep = [i for i, column in enumerate(HEADER) if column != name]
    path = table(tmp_path, *[[row[i] for i in keep] for row in ROWS], header=[HEADER[i] for i in keep])
    assert f"peaks.tsv: column {name} is missing" in error(path)


@pytest.mark.parametrize("value", ["abc", "1,5", "n/a", "nan", "inf", "1_0", "12 mm"])
def test_a_coordinate_that_is_no_number(tmp_path, value):
    message = error(table(tmp_path, ROWS[0], changed(y=value)))
    assert f"peaks.tsv, row 3, column y: '{value}' is not a number" in message


def test_an_empty_coordinate(tmp_path):
    assert "peaks.tsv, row 3, column z: empty" in error(table(tmp_path, ROWS[0], changed(z="")))


def test_the_row_is_the_one_of_the_file(tmp_path):
    path = tmp_path / "peaks.csv"
    path.write_text(
        'source_study,contrast,direction,space,x,y,z,note\n\nA,a,increase,MNI,1,2,3,"two\nlines"\n\nA,a,increase,MNI,1,2,?,\n'
    )
    assert "peaks.csv, row 6, column z: '?'" in error(path)


@pytest.mark.parametrize("value", [151, -150.5, 1e6])
def test_a_coordinate_beyond_the_head(tmp_path, value):
    assert f"row 2, column x: {value:g} mm lies outside" in error(table(tmp_path, changed(x=value)))


def test_150_mm_is_allowed(tmp_path):
    assert read_coordinates(table(tmp_path, changed(x=-150)))["x"].tolist() == [-150]


def test_an_unknown_space(tmp_path):
    assert "row 3, column space: space is 'Colin'; allowed: MNI, Talairach" in error(
        table(tmp_path, ROWS[0], changed(space="Colin"))
    )


def test_an_unknown_space_as_argument(tmp_path):
    assert "argument space: space is 'Colin'" in error(table(tmp_path), space="Colin")


def test_an_unknown_direction(tmp_path):
    assert "row 2, column direction: direction is 'up'; allowed: increase, decrease" in error(
        table(tmp_path, changed(direction="up"))
    )
    assert "direction is 'up'; allowed" in error(table(tmp_path), direction="up")
    assert "directions is 'increase'" in error(table(tmp_path), directions="increase")


@pytest.mark.parametrize("name", ["source_study", "contrast"])
def test_an_empty_name(tmp_path, name):
    assert f"row 2, column {name}: empty" in error(table(tmp_path, changed(**{name: " "})))


def test_an_empty_direction(tmp_path):
    path = table(tmp_path, changed(direction=""))
    assert "row 2, column direction: no direction is stated" in error(path)
    assert read_coordinates(path, direction="decrease")["direction"].tolist() == ["decrease"]


@pytest.mark.parametrize("content", ["", "\n \n", "\t".join(HEADER) + "\n"])
def test_an_empty_table(tmp_path, content):
    path = tmp_path / "peaks.tsv"
    path.write_text(content)
    assert re.search(r"peaks\.tsv: .*(empty|no rows)", error(path))


def test_an_empty_excel_file(tmp_path):
    assert "empty" in error(write_xlsx(tmp_path / "a.xlsx", []))


def test_an_empty_frame_has_the_same_meaning(volume):
    from ketanet.seeds import seeds_from_coordinates

    with pytest.raises(InputError, match="the coordinate table is empty"):
        seeds_from_coordinates(pd.DataFrame(columns=HEADER), volume)


def test_a_coordinate_given_twice_warns_and_stays(tmp_path):
    path = table(tmp_path, ROWS[0], ROWS[1], ROWS[0], changed(direction="decrease"))
    with pytest.warns(KetanetWarning, match=r"given twice.*: Ma2020: A\+B \(-12.5, 30, 4\)$"):
        found = read_coordinates(path)
    assert len(found) == 4


def test_more_values_than_columns(tmp_path):
    assert "row 2: 8 values for 7 columns" in error(table(tmp_path, [*ROWS[0], "more"]))


def test_a_column_twice(tmp_path):
    assert "column x stands twice" in error(table(tmp_path, [*ROWS[0], 3], header=[*HEADER, "X"]))


def test_an_open_quotation_mark(tmp_path):
    path = table(tmp_path, changed(contrast='"open'), ROWS[1])
    assert "row 2: not a readable table" in error(path)


def test_text_in_another_encoding(tmp_path):
    path = tmp_path / "peaks.tsv"
    path.write_bytes("\t".join(HEADER).encode() + "\nM\xfcller\tA\tincrease\tMNI\t1\t2\t3\n".encode("latin-1"))
    assert "not UTF-8" in error(path)


@pytest.mark.parametrize("writer", [write_xlsx, write_xls])
def test_a_truncated_excel_file(tmp_path, writer):
    path = tmp_path / ("a.xlsx" if writer is write_xlsx else "a.xls")
    writer(path, [HEADER, *ROWS])
    path.write_bytes(path.read_bytes()[:1500])
    assert re.search(r"a\.xlsx?: truncated or damaged Excel file", error(path))


def test_text_that_is_called_excel(tmp_path):
    assert "not an Excel file" in error(write_text(tmp_path / "a.xlsx", [HEADER, *ROWS]))


@pytest.mark.parametrize("name", ["peaks.ods", "peaks"])
def test_an_unknown_extension(tmp_path, name):
    assert "is not known; allowed: a table (.tsv .csv .xlsx .xls)" in error(write_text(tmp_path / name, ROWS))


def test_no_such_file(tmp_path):
    assert "no such file or folder" in error(tmp_path / "peaks.tsv")


# --- folders


def test_a_folder_as_laboratories_keep_it(lab):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_coordinates(lab)
    ours = [w for w in caught if not issubclass(w.category, ResourceWarning)]
    assert [w.category for w in ours] == [KetanetWarning]
    assert "no studies.tsv" in str(ours[0].message)
    assert found[HEADER].to_numpy().tolist() == [
        ["P1_A+B", "P1_A+B", "increase", "MNI", 1, 2, 3],
        ["P1_A+B", "P1_A+B", "increase", "MNI", -4.5, 5, 6],
        ["P2", "P2", "increase", "MNI", 7, 8, 9],
        ["P1_A+B", "P1_A+B", "decrease", "MNI", 10, 11, 12],
    ]
    assert found["name"].tolist()[:3] == ["P1_1", "P1_2", "P2_1"]


def test_studies_table_of_a_folder(lab):
    write_text(
        lab / "studies.tsv",
        [
            ["file", "source_study", "space", "n"],
            ["increase/P1_A+B.xlsx", "Chen 2018", "Talairach", 12],
            ["increase\\P2.xls", "Chen 2018", "MNI", 20],
            ["decrease/P1_A+B.xlsx", "Li 2015", "MNI", "n/a"],
        ],
    )
    (lab / "studies.tsv").write_text((lab / "studies.tsv").read_text().replace("n/a", ""))
    found = read_coordinates(lab)
    assert found["source_study"].tolist() == ["Chen 2018"] * 3 + ["Li 2015"]
    assert found["space"].tolist() == ["Talairach"] * 2 + ["MNI"] * 2
    np.testing.assert_array_equal(found["n"], [12, 12, 20, np.nan])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["increase/P1_A+B.xlsx", "A", "MNI"]], "no row for increase/P2.xls, decrease/P1_A+B.xlsx"),
        ([["increase/P3.xlsx", "A", "MNI"]], "row 2, column file: 'increase/P3.xlsx' does not exist"),
        ([["increase/P2.xls", "A", "MNI"]] * 2, "row 3, column file: 'increase/P2.xls' stands there twice"),
        ([["increase/P2.xls", "", "MNI"]], "row 2, column source_study: empty"),
        ([["increase/P2.xls", "A", "native"]], "row 2, column space: space is 'native'"),
    ],
)
def test_a_studies_table_that_does_not_fit(lab, rows, said):
    write_text(lab / "studies.tsv", [["file", "source_study", "space"], *rows])
    message = error(lab)
    assert "studies.tsv" in message
    assert said in message


def test_a_studies_table_without_a_column(lab):
    write_text(lab / "studies.tsv", [["file", "space"], ["increase/P2.xls", "MNI"]])
    assert "column source_study is missing" in error(lab)


@pytest.mark.parametrize("writer", [write_xlsx, write_xls])
def test_a_text_cell_among_numbers(lab, writer):
    path = lab / "decrease" / ("Q.xlsx" if writer is write_xlsx else "Q.xls")
    writer(path, [[1, 2, 3, "Q_1"], [1, "left", 3, "Q_2"]])
    with pytest.warns(KetanetWarning):
        assert f"{path}, row 2, column B (y): 'left' is not a number" in error(lab)


def test_empty_and_distant_cells_of_an_excel_file(lab):
    path = write_xlsx(lab / "decrease" / "Q.xlsx", [[1, 2, 3], [None] * 3, [1, None, 3]])
    with pytest.warns(KetanetWarning):
        assert f"{path}, row 3, column B (y): empty" in error(lab)
    write_xlsx(path, [[1, 2, 300]])
    with pytest.warns(KetanetWarning):
        assert f"{path}, row 1, column C (z): 300 mm lies outside" in error(lab)


def test_dates_and_errors_of_an_old_excel_file_are_no_numbers(lab):
    import datetime

    book = xlwt.Workbook()
    sheet = book.add_sheet("first")
    sheet.write(0, 0, 1)
    sheet.write(0, 1, datetime.date(1900, 2, 3), xlwt.easyxf(num_format_str="D-MMM"))
    sheet.write(0, 2, 3)
    book.save(str(lab / "decrease" / "Q.xls"))
    with pytest.warns(KetanetWarning):
        assert "row 1, column B (y): '1900-02-03 00:00:00' is not a number" in error(lab)
    sheet = (book := xlwt.Workbook()).add_sheet("first")
    sheet.row(0).set_cell_error(0, 42)
    book.save(str(lab / "decrease" / "Q.xls"))
    with pytest.warns(KetanetWarning):
        assert "row 1, column A (x): '#N/A' is not a number" in error(lab)


def test_true_is_no_coordinate(lab):
    write_xlsx(lab / "decrease" / "Q.xlsx", [[True, 2, 3]])
    with pytest.warns(KetanetWarning):
        assert "column A (x): 'True' is not a number" in error(lab)


def test_a_contrast_file_that_is_empty_or_header_only(lab):
    for rows in ([], [["x", "y", "z", "name"]]):
        write_xlsx(lab / "decrease" / "Q.xlsx", rows)
        with pytest.warns(KetanetWarning):
            assert re.search(r"Q\.xlsx: .*(empty|no rows)", error(lab))


def test_a_damaged_contrast_file_is_named(lab):
    (lab / "decrease" / "Q.xlsx").write_bytes((lab / "decrease" / "P1_A+B.xlsx").read_bytes()[:900])
    with pytest.warns(KetanetWarning):
        assert f"{lab / 'decrease' / 'Q.xlsx'}: truncated or damaged" in error(lab)


def test_a_direction_without_its_folder(lab):
    message = error(lab, directions=["increase", "lower"])
    assert "no sub-folder 'lower'" in message
    assert "decrease, drafts, increase" in message
    (lab / "lower").mkdir()
    assert "lower: the folder holds no Excel file" in error(lab, directions=["increase", "lower"])


def test_a_folder_without_excel_files(tmp_path):
    (tmp_path / "increase").mkdir()
    assert "increase: the folder holds no Excel file" in error(tmp_path)
    assert "no Excel file" in error(tmp_path / "increase")


def test_a_folder_of_one_direction(lab):
    assert "no direction is stated" in error(lab / "increase")
    with pytest.warns(KetanetWarning, match="no studies.tsv"):
        found = read_coordinates(lab / "increase", direction="decrease", space="TAL")
    assert found["contrast"].tolist() == ["P1_A+B", "P1_A+B", "P2"]
    assert set(found["direction"]) == {"decrease"}
    assert set(found["space"]) == {"Talairach"}


def test_files_beside_the_sub_folders(lab):
    write_xlsx(lab / "overview.xlsx", [["anything"]])
    assert "both in the folder and in its sub-folders" in error(lab, directions=None)
    with pytest.warns(KetanetWarning):
        assert len(read_coordinates(lab)) == 4


def test_two_files_of_one_contrast(lab):
    write_xlsx(lab / "increase" / "P2.xlsx", [[1, 2, 3]])
    with pytest.warns(KetanetWarning):
        assert "the same contrast as P2.xls" in error(lab)


@pytest.mark.parametrize(
    ("name", "contrasts", "peaks"), [("AVH_State", 16, 157), ("AVH_Trait", 37, 295), ("BD_fMRI", 23, 123)]
)
def test_published_folders(data, name, contrasts, peaks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_coordinates(data / "fcnm" / "coordinates", directions=[name])
    assert found["contrast"].nunique() == contrasts
    assert len(found) == peaks
    assert set(found["direction"]) == {name}
    assert found.groupby("contrast").size().between(1, 49).all()
    ours = [w for w in caught if not issubclass(w.category, ResourceWarning)]
    assert {w.category for w in ours} == {KetanetWarning}  # none about the Excel reader
    assert sum("no studies.tsv" in str(w.message) for w in ours) == 1
    stem = found["contrast"].iloc[0]
    file = next((data / "fcnm" / "coordinates" / name).glob(f"{stem}.*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = pd.read_excel(file, header=None)
    np.testing.assert_array_equal(found.loc[found["contrast"] == stem, ["x", "y", "z"]], plain.iloc[:, :3])


def test_two_published_folders_as_directions(data):
    with pytest.warns(KetanetWarning):
        found = read_coordinates(data / "fcnm" / "coordinates", directions=["AVH_Trait", "AVH_State"])
    assert found["direction"].drop_duplicates().tolist() == ["AVH_Trait", "AVH_State"]
    assert found["contrast"].nunique() == 53


# --- formats of meta-analysis programs


SLEUTH = """//Reference=Talairach

// Carlson, 2013: Ketamine > baseline
// Subjects=20
-10\t20\t30
1.5 , 2 , 3

//Li, 2015: A
//Li, 2015: B
//Subjects = 8
4 5 6
// Solo 2016
7 8 9
"""


def sleuth(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "peaks.txt"
    path.write_text(text)
    return path


def test_sleuth(tmp_path):
    found = read_coordinates(sleuth(tmp_path, SLEUTH), direction="increase")
    assert found[HEADER].to_numpy().tolist() == [
        ["Carlson, 2013", "Ketamine > baseline", "increase", "Talairach", -10, 20, 30],
        ["Carlson, 2013", "Ketamine > baseline", "increase", "Talairach", 1.5, 2, 3],
        ["Li, 2015", "A; B", "increase", "Talairach", 4, 5, 6],
        ["Solo 2016", "Solo 2016", "increase", "Talairach", 7, 8, 9],
    ]
    np.testing.assert_array_equal(found["n"], [20, 20, 8, np.nan])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("-10\t20\t30", "-10\t20", "row 5: 2 values, expected three"),
        ("-10\t20\t30", "-10\tup\t30", "row 5, column y: 'up' is not a number"),
        ("-10\t20\t30", "-10\t20\t300", "row 5, column z: 300 mm"),
        ("//Reference=Talairach", "", "row 5, //Reference=: space is ''"),
        ("=Talairach", "=Colin", "row 5, //Reference=: space is 'Colin'"),
        ("=20", "=many", "row 4: Subjects is 'many'"),
        ("// Carlson, 2013: Ketamine > baseline", "", "row 5: coordinates without a heading"),
        ("// Solo 2016", "// Carlson, 2013: Ketamine > baseline", "row 13: a second experiment is called"),
        (SLEUTH, "//Reference=MNI\n// A: b\n", "no coordinates"),
        (SLEUTH, "1 2 3\n", "not a Sleuth file"),
    ],
)
def test_bad_sleuth(tmp_path, old, new, said):
    assert said in error(sleuth(tmp_path, SLEUTH.replace(old, new)), direction="increase")


def test_formats_without_direction_need_one(tmp_path, data):
    assert "no direction is stated; allowed: increase, decrease" in error(sleuth(tmp_path, SLEUTH))
    assert "no direction is stated" in error(data / "coordinates" / "nidm_pain_dset.json")


@pytest.mark.parametrize("name", ["nidm_pain_dset.json", "nidm_pain_studyset.json"])
def test_pain_studies(data, name):
    found = read_coordinates(data / "coordinates" / name, direction="increase")
    assert len(found) == 267
    assert found["source_study"].nunique() == 21
    assert set(found["space"]) == {"MNI"}
    first = found[found["source_study"] == "pain_01.nidm"]
    assert set(first["n"]) == {25}
    assert [48.0, -38.0, -24.0] in first[["x", "y", "z"]].to_numpy().tolist()


def test_laird_studies_need_the_space_of_three(data):
    path = data / "coordinates" / "neurosynth_laird_studies.json"
    content = json.loads(path.read_text())
    spaces = {study: entry["contrasts"]["1"]["coords"]["space"] for study, entry in content.items()}
    message = error(path, direction="increase")
    unknown = sorted(study for study, space in spaces.items() if space == "UNKNOWN")
    assert len(unknown) == 3
    assert f"the space of {', '.join(unknown)} is unknown" in message
    assert "space=" in message
    with pytest.warns(KetanetWarning, match="given twice"):
        found = read_coordinates(path, direction="increase", space="MNI")
    assert len(found) == 1117
    meant = {"MNI": "MNI", "TAL": "Talairach", "UNKNOWN": "MNI"}
    got = found.groupby("source_study")["space"].unique()
    assert {study: list(values) for study, values in got.items()} == {s: [meant[v]] for s, v in spaces.items()}


def nimare(tmp_path: Path, **coords: object) -> Path:
    body = {"space": "MNI", "x": [1.0], "y": [2.0], "z": [3.0]} | coords
    path = tmp_path / "set.json"
    contrasts = {"1": {"coords": body, "metadata": {"sample_sizes": [12, 13]}}, "2": {"images": {}}}
    path.write_text(json.dumps({"S1": {"contrasts": contrasts}}))
    return path


def test_a_contrast_without_coordinates_is_left_out(tmp_path):
    with pytest.warns(KetanetWarning, match="left out, without coordinates: S1 2"):
        found = read_coordinates(nimare(tmp_path), direction="increase")
    assert found["contrast"].tolist() == ["1"]
    assert found["n"].tolist() == [25]


@pytest.mark.parametrize(
    ("coords", "said"),
    [
        ({"x": [None]}, "study S1, contrast 1, point 1, column x: empty"),
        ({"x": ["left"]}, "point 1, column x: 'left' is not a number"),
        ({"z": [-200]}, "point 1, column z: -200 mm"),
        ({"space": "Colin"}, "space is 'Colin'; allowed"),
        ({"space": None}, "the space of S1 is unknown"),
        ({"x": [1, 2]}, "neither a NiMARE dataset nor a NIMADS studyset"),
    ],
)
def test_bad_nimare(tmp_path, coords, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KetanetWarning)
        assert said in error(nimare(tmp_path, **coords), direction="increase")


@pytest.mark.parametrize(
    "content", ['{"a": ', "[1, 2]", '{"a": 3}', '{"studies": [{"id": "a"}]}', "{}", '{"studies": []}']
)
def test_json_of_something_else(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_text(content)
    assert re.search(r"not readable as JSON|neither a NiMARE|no coordinates", error(path, direction="increase"))


def test_nimads_names_that_are_not_unique_give_way_to_ids(tmp_path):
    def analysis(identifier: str, name: str, x: float) -> dict[str, object]:
        return {"id": identifier, "name": name, "points": [{"space": "TAL", "coordinates": [x, 2, 3]}]}

    studies = [
        {"id": "s1", "name": "Pain", "analyses": [analysis("a1", "main", 1), analysis("a2", "main", 2)]},
        {"id": "s2", "name": "Pain", "analyses": [analysis("a3", "", 3), analysis("a4", "contrast", 4)]},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"id": "x", "studies": studies}))
    found = read_coordinates(path, direction="increase")
    assert found[["source_study", "contrast", "x"]].to_numpy().tolist() == [
        ["s1", "a1", 1],
        ["s1", "a2", 2],
        ["s2", "a3", 3],
        ["s2", "contrast", 4],
    ]
    assert set(found["space"]) == {"Talairach"}


# --- Talairach and MNI


def test_talairach_is_the_matrix(rng):
    mni = rng.uniform(-90, 90, (200, 3))
    expected = [[sum(row[a] * p[a] for a in range(3)) + row[3] for row in LANCASTER] for p in mni]
    np.testing.assert_allclose(mni_to_talairach(mni), expected, atol=1e-10)
    np.testing.assert_allclose(talairach_to_mni(expected), mni, atol=1e-9)


def test_talairach_round_trip_within_a_hundredth_of_a_millimetre(rng):
    points = rng.uniform(-100, 100, (500, 3))
    assert np.abs(talairach_to_mni(mni_to_talairach(points)) - points).max() < 0.01
    assert np.abs(mni_to_talairach(talairach_to_mni(points)) - points).max() < 0.01


def test_talairach_of_the_origin():
    np.testing.assert_allclose(mni_to_talairach([[0, 0, 0]]), [[-1.0207, -1.7667, 4.0926]])


def test_talairach_needs_three_columns():
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        talairach_to_mni([1, 2, 3])
