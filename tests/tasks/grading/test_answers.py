"""Where a response states its answer, and which gold answers are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixrl_jax.tasks.grading.answers import check_gold, final_answer, gold_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
        (r"\fbox{3} is it", "3"),
        (r"\boxed 7$", "7"),
        (r"\boxed{ }", None),
        (r"cut off: \boxed{\frac{1}{2", None),
        (r"\boxed{5}, no, \boxed{\frac{1}{2", None),
        ("He sold 48/2 = <<48/2=24>>24 in May.\nThat is 48 + 24 = 72 in all.\n#### 72", "72"),
        ("#### 1\nno: #### 1,234 \nbye", "1,234"),
        ("#### **$24**", "$24"),
        ("#### `24`", "24"),
        ("#### 2**3", "2**3"),
        ("#### 2**3**4", "2**3**4"),
        ("The answer is 12.", "12"),
        ("The final answer is: $x = 3.5$. I hope it is correct.", "$x = 3.5$"),
        ("Answer: 1/2", "1/2"),
        ("**Final Answer**: 24", "24"),
        ("**Answer: 24**", "24"),
        ("the answer is **24 apples**.", "24 apples"),
        (r"#### 5 but \boxed{6}", "6"),
        (r"\boxed{1}\boxed{2}", "1 ; 2"),
        (r"\(\boxed{1}\) and \(\boxed{-2}\).", "1 ; -2"),
        (r"\boxed{x<1} \text{ or } \boxed{x>3}", "x<1 or x>3"),
        (r"\[\boxed{(1, 2)}, \boxed{(2, 1)}\]", "(1, 2) ; (2, 1)"),
        (r"\boxed{7}" + "\n\n" + r"\boxed{7}", "7"),
        (r"\boxed{5} or was it \boxed{7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        ("so **24**", "24"),
        ("**Step 2.**", None),
        ("**1** or **2**", None),
        ("**24**\nor not", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_found(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        r"x = -\boxed{42}",
        r"$x=2\boxed{3}$",
        r"\sqrt{\boxed{2}}",
        r"\sqrt[3]{\boxed{2}}",
        r"$\frac{\boxed{1}}{2}$",
        r"$\frac{1}{2}\boxed{1}$",
        r"2 \cdot \boxed{3}",
        r"2 + \boxed{3}",
        r"$x < \boxed{3}$",
        r"$x \ne \boxed{3}$",
        r"$f(\boxed{3})$",
        r"\sin \boxed{x}",
        r"2^{\boxed{3}}",
        r"it is not \boxed{4}",
        r"minus $\boxed{4}$",
        r"\boxed{4}^2",
        r"\boxed{4}2",
        r"\boxed{4} + 1",
        r"$5!\boxed{4}$",
        r"$x>\boxed{4}$",
        "so x -\n\\boxed{4}",
        r"-\boxed{1} and \boxed{2}",
        r"\boxed{1} and -\boxed{2}",
    ],
)
def test_a_box_that_the_text_around_it_changes_states_nothing(text):
    assert final_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        r"so \boxed{4}",
        r"$$\boxed{4}$$",
        r"\[ x = \boxed{4} \]",
        r"**\boxed{4}**",
        "**Final Answer:**\n\n$$\n\\boxed{4}\n$$",
        r"\text{so } \boxed{4}",
        r"x \Rightarrow \boxed{4}",
        r"(\boxed{4})",
        r"1. \boxed{4}",
        r"\begin{align*} x &= \boxed{4} \end{align*}",
        r"$\boxed{4}^\circ$",
        r"$\boxed{4}$ cm",
        r"the root is \boxed{4}!",
        r"\color{blue}{\boxed{4}}",
        r"x \in \boxed{4}",
        "so far.\n</think>\n\n\\boxed{4}",
        "<answer>$\\boxed{4}$</answer>",
        "done\n\n---\n$$\\boxed{4}$$",
        r"Great! \boxed{4}",
        "# Answer\n\n> \\boxed{4}",
    ],
)
def test_a_box_in_ordinary_text_states_what_it_holds(text):
    assert final_answer(text) == "4"


@given(st.lists(st.sampled_from(["{", "}", "a", "\\boxed{", " "]), max_size=30).map("".join))
def test_what_a_box_holds_is_balanced(text):
    content = final_answer(text)
    if content is not None:
        assert content.count("{") == content.count("}")


@pytest.mark.parametrize(
    "answer", ["", "  ", "nan", "NaN", "-inf", "inf", "Infinity", r"\text{nan}", "$nan$", "."]
)
def test_what_is_no_answer_is_refused_as_a_gold_answer(answer):
    with pytest.raises(ValueError, match="field 'answer'"):
        check_gold(answer, "field 'answer'")


@pytest.mark.parametrize("answer", ["0", r"\infty", "none", r"\text{Nancy}", "1e999", "Inform"])
def test_what_is_an_answer_is_accepted_as_a_gold_answer(answer):
    check_gold(answer)


def test_a_gold_answer_may_stand_in_a_box():
    assert gold_answer(r"It is \(\boxed{6}\).") == "6"
    assert gold_answer(r"\boxed{6") == r"\boxed{6"
    assert gold_answer("6") == "6"
