"""The command lines that tests/test_recorded.py records, in groups; each group gives the file names a beginning.

A line is written as in a shell. FILES is a folder of captures, arrays and texts that the test makes, MINILM the folder
of all-MiniLM-L6-v2, TINY/NAME a small random model of tests/tiny.py.
"""

CAT = '"The cat sat."'
DOG = '"The dog sat."'
TIRED = '"The cat sat because it was tired."'

COMMANDS = {
    "show": f"""
        show
        show {CAT}
        show {CAT} -H all
        show {CAT} -H 0,2 -l all
        show {CAT} -H L1H3
        show {CAT} -H L0H2,L1H3
        show {CAT} -l -1 -H 2-3
        show {CAT} -H 0,1 --reduce mean
        show {CAT} -l 1 --reduce max
        show {CAT} --view grid
        show {CAT} --view grid --width 60
        show {CAT} --view heatmap -H 0,1
        show {TIRED} --view tokens --token it
        show {TIRED} --view tokens --token it --incoming
        show {TIRED} --view rows --token it
        show {TIRED} --token 0 --view rows -l 1
        show {TIRED} --rows 2:5 --cols 0:4
        show {TIRED} --rows -3:
        show @sample:repeat
        show @sample:repeat --full
        show @sample:repeat --view grid --color always
        show @sample:repeat -H L1H3 --color always
        show @sample:chinese
        show @sample:arabic --width 70
        show @sample:emoji_code --view tokens --token 2
        show {CAT} --special drop
        show {CAT} --special renormalise
        show {CAT} --range full --scale linear
        show {CAT} --cmap magma --color always
        show {CAT} --title "A title"
        show {CAT} --words
        show {CAT} --weights norm
        show {CAT} --weights norm --reduce sum
        show {CAT} --weights norm -H all
        show {CAT} --weights gradient
        show {CAT} --weights gradient --target-token " the"
        show {CAT} --weights chefer
        show {CAT} --weights rollout
        show {CAT} --weights scores -H L0H2
        show {CAT} -v
        show {CAT} -q
        show {CAT} --json
        show {CAT} --json -H L1H3 --words
        show {CAT} --json --weights scores -H L0H2
        show {CAT} -o - --format csv -H L1H3
        show {CAT} -o - --format md -H L1H3
        show {CAT} -o - --format json -l 0 -H 0
    """,
    "file": f"""
        show {CAT} -o cat.png
        show {CAT} -o cat.svg --style paper --inches 3.25
        show {CAT} -o cat.pdf --style slide
        show {CAT} -o cat.png --dpi 60 --transparent --cmap gray
        show {CAT} -o cat.html
        show {CAT} -o cat.html --exact -H 0,1 -l 0
        show {CAT} -o cat.json -H L1H3
        show {CAT} -o cat.csv -H L1H3
        show {CAT} -o cat.md -H L1H3
        show {CAT} -o cat.npz -H all
        show {CAT} --view grid -o grid.png
        show {CAT} --view grid -o grid.svg
        show {TIRED} --view tokens --token it -o tokens.png
        show {TIRED} --view tokens --token it -o tokens.svg
        show {TIRED} --view rows --token it -o rows.png
        show {CAT} --weights norm -o norm.png
        show {CAT} --weights scores -H L0H2 -o scores.png
        show {CAT} -o there.png --format svg
    """,
    "from": """
        show --from FILES/cat.attn
        show --from FILES/cat.attn --view grid
        show --from FILES/cat.attn -H L1H3 --rows 1:3
        show --from FILES/cat.attn --json -H L1H3
        show --from FILES/cat.attn --weights rollout
        show --from FILES/norms.attn
        show --from FILES/tiles.attn
        show --from FILES/tiles.attn --view grid
        show --from FILES/statistics.attn
        show --from FILES/given.npz
        show --from FILES/cat.attn -m builtin
        show --from FILES/cat.attn --weights norm
        show --from FILES/none.attn
        show --from FILES/words.txt
        inspect --from FILES/cat.attn
        inspect --from FILES/statistics.attn --json
        compare --from FILES/cat.attn --from FILES/dog.attn
        export --from FILES/cat.attn -o report -l 1 --formats json,md
    """,
    "change": f"""
        show {CAT} --ablate L0H2
        show {CAT} --ablate L0H2 --with mean
        show {CAT} --ablate L0H2,L1H3 --with uniform
        show {CAT} --ablate L0H2 --with permute --json
        show {CAT} --knock-out "sat->cat"
        show {CAT} --knock-out "*->cat" --in 0
        show {CAT} --knock-out "sat->cat" --json
        show {CAT} --knock-out "sat->cat" -o cut.png
        show {CAT} --knock-out "sat->cat" -o cut.html
        show {CAT} --knock-out "sat->cat" -o - --format csv
        show {CAT} --knock-out "cat->sat"
        show {CAT} --in 0
        show {CAT} --with mean
        show {CAT} --ablate 3
        show --from FILES/cat.attn --ablate L0H2
        intervene {CAT} --ablate L0H2
        intervene {CAT} --ablate L0H2,L1H3 --with uniform
        intervene {CAT} --knock-out "*->cat" --in 0
        intervene {CAT} --knock-out "sat->cat" --json
        intervene {CAT} --knock-out "sat->cat" -o cut.html
        intervene {CAT} --knock-out "sat->cat" -o cut.md
        intervene {CAT} --ablate L0H2 --view grid
        intervene {CAT} --ablate L0H2 --weights norm
        intervene {CAT} --ablate 3
        intervene {CAT} --in 0
        intervene {CAT}
    """,
    "inspect": f"""
        inspect {CAT}
        inspect {CAT} --sort previous --top 3
        inspect {CAT} --sort head --reverse
        inspect {CAT} -l 1 --top all
        inspect {CAT} {DOG}
        inspect {CAT} {DOG} --json -H L1H3
        inspect {CAT} --weights norm
        inspect {CAT} --weights scores
        inspect {TIRED} --token it
        inspect {TIRED} --token it --json -H L1H3
        inspect {TIRED} --query it --key cat
        inspect {TIRED} --query it --key cat --json
        inspect @sample:question --segments auto
        inspect @sample:question --segments auto --query -1 -l 1
        inspect @sample:question --segments auto --json -H L1H3
        inspect {CAT} --words
        inspect {CAT} --lines
        inspect {CAT} -o heads.csv
        inspect {CAT} -o heads.md
        inspect {CAT} -o heads.html
        inspect {CAT} -o heads.png
        inspect {TIRED} --token it -o token.csv
        inspect --explain-columns
        inspect {CAT} --sort nothing
        inspect {CAT} --token it --sort entropy
        inspect {CAT} --query it
    """,
    "explain": f"""
        explain {CAT}
        explain {TIRED} --query it -l 1 -H 3
        explain {TIRED} --query it --top 3
        explain {CAT} --json
        explain {CAT} -o steps.html
        explain {CAT} -o steps.md
        explain {CAT} -o steps.csv
        explain {CAT} --score additive --query cat
        explain {CAT} --score cosine --json
        explain {CAT} -H 0,1
        explain {CAT} --query zebra
    """,
    "attribute": f"""
        attribute {CAT}
        attribute {TIRED} --verify
        attribute {TIRED} --by norm --top 3
        attribute {CAT} --json
        attribute {CAT} --target-token " the"
        attribute {CAT} --leave-one-out
        attribute {CAT} --ablate L0H2
        attribute {CAT} -o ranks.csv
        attribute {CAT} -o ranks.md
        attribute {CAT} -o ranks.html
        attribute {CAT} -o ranks.png
        attribute {CAT} --by nothing
        attribute {CAT} --query 99
    """,
    "heads": """
        heads --sequences 2 --block 8
        heads --sequences 2 --block 8 --json -H L1H3
        heads --sequences 2 --block 8 --role induction
        heads --sequences 2 --block 8 -o heads.csv
        heads --sequences 2 --block 8 -o heads.png
        heads --sequences 2 --block 8 -o heads.md
        heads --ablate -H L0H2,L1H3 --sequences 2 --block 8
        heads --ablate -H L0H2 --sequences 2 --block 8 --json
        heads --explain-roles
        heads --role nothing
        heads --corpus FILES/words.txt --sequences 2 --block 8 -l 1
    """,
    "compare": f"""
        compare -m builtin -m builtin {CAT} {DOG}
        compare {CAT} --with {DOG}
        compare {CAT} --with {DOG} --view maps
        compare {CAT} --with {DOG} --view heads
        compare {CAT} --with {DOG} --view table --top 3
        compare {CAT} --with {DOG} -H L1H3
        compare {CAT} --with {DOG} --json -H L1H3
        compare {CAT} --with {DOG} --weights norm
        compare {CAT} --with {DOG} -o both.png
        compare {CAT} --with {DOG} -o both.md
        compare {CAT} --with {DOG} -o both.csv
        compare {CAT} --with {DOG} -o both.html
        compare -m builtin -m builtin -m builtin {CAT}
        compare -m builtin -m MINILM {CAT}
        compare {CAT} --with {CAT}
        compare {CAT}
    """,
    "check": f"""
        check --min L1H3.induction=0.75
        check {CAT} --max L0H2.entropy=4 --min sink=0.01
        check {CAT} --max L0H2.entropy=0.1
        check {CAT} --max L0H2.entropy=0.1 --json
        check {CAT} --with {DOG} --max-js 0.3
        check @sample:question --min-share "line 1=0.01" --query -1
        check {CAT} --min nothing=1
        check {CAT}
    """,
    "capture": f"""
        capture {CAT} -o cat.attn
        capture {CAT} -o cat.attn --keep tiles --tiles 2
        capture {CAT} -o cat.attn --keep statistics -v
        capture {CAT} -o cat.attn --keep edges
        capture {CAT} -o cat.npz -H L1H3
        capture {CAT} -o cat.json -l 0 -H 0
        capture {CAT} -o cat.txt
        capture {CAT}
    """,
    "export": f"""
        export {CAT} -o report -l 0 --formats svg,csv,md
        export {CAT} -o report -H L1H3
        export {CAT} -o report --formats gif
        export {CAT}
    """,
    "model": f"""
        show {CAT} -m MINILM
        show {CAT} -m MINILM -H L2H1 -v
        show {CAT} -m MINILM -H L2H1 -v --engine torch
        show {CAT} -m MINILM --view grid -l 0
        show "unbelievable words" -m MINILM --words
        show {CAT} -m MINILM --pair {DOG}
        show {CAT} -m MINILM --weights norm
        show {CAT} -m MINILM --weights rollout
        show {CAT} -m MINILM --json -H L2H1
        show {CAT} -m MINILM -o cat.pdf -H L2H1
        show {CAT} -m MINILM --knock-out "sat->cat" -H L2H1
        inspect {CAT} -m MINILM --top 5
        explain {CAT} -m MINILM -l 2 -H 1 --query cat
        attribute {CAT} -m MINILM --query cat --top 3
        capture {CAT} -m MINILM -o cat.attn -l 0
        capture {CAT} -m MINILM -o cat.attn -l 0 --engine torch
        show {CAT} -m TINY/bart --target {DOG}
        show {CAT} -m TINY/bart --target {DOG} --map cross -H L0H1
        show {CAT} -m TINY/gpt2 --generate 2
        show {CAT} -m TINY/chat --chat
    """,
    "error": f"""
        show ""
        show {CAT} -l 9
        show {CAT} -H L9H0
        show {CAT} -H 3-1
        show {CAT} --layers x
        show {CAT} -l 0 -H L1H3
        show {CAT} --token it
        show {CAT} --view tokens
        show {CAT} --view tokens --token zebra
        show {CAT} --incoming
        show {CAT} --rows 9:12
        show {CAT} --reduce sum
        show {CAT} --weights rollout -H 0
        show {CAT} --target-token x
        show {CAT} --weights scores --special renormalise
        show {CAT} --style paper
        show {CAT} --exact
        show {CAT} --json -o cat.json
        show {CAT} -o -
        show {CAT} -o cat.gif
        show {CAT} -o nowhere/cat.png
        show {CAT} -o FILES/words.txt
        show {CAT} -o FILES/cat.attn
        show {CAT} -o FILES/cat.json
        show {CAT} --pair {DOG}
        show {CAT} --chat
        show {CAT} --generate 2
        show {CAT} --device cuda:99
        show {CAT} --dtype int8
        show {CAT} -m nowhere/at/all --offline
        show {CAT} -m FILES
        show {CAT} --tokenizer FILES
        show @FILES/none.txt
        show @sample:none
        show {CAT} extra
        shwo {CAT}
        show --lyers 1
        inspect --from FILES/cat.attn {CAT}
        train
    """,
}


def every_command() -> list[tuple[str, str]]:
    """Return the group and the line of each command."""
    lines = ((group, text.strip().splitlines()) for group, text in COMMANDS.items())
    return [(group, line.strip()) for group, texts in lines for line in texts]
