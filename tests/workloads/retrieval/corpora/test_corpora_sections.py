from farreach_workloads.retrieval.corpora.sections import (
    Section,
    html_sections,
    passages,
    pod_sections,
)

SPHINX = """<html><head><title>FAQ</title><style>p {}</style></head><body>
<div class="related"><h3>Navigation</h3><div>menu</div></div>
<section id="faq"><h1>FAQ<a class="headerlink" href="#faq">¶</a></h1>
<section id="why"><span id="other"></span><h2>Why
 &amp; <em>how</em>?<a class="headerlink">¶</a></h2>
<p>Because it
is <code>x &lt; y</code>.</p>
<pre>if x:
    y()
</pre><ul><li>one</li><li>two<br>three</li></ul>
</section></section></body></html>"""

DOCBOOK = """<div class="chapter"><h1 class="title"><a id="c"></a>Chapter 1</h1>
<div class="toc"><dl class="toc"><dt>1.1. Q?</dt></dl></div>
<h2 class="title"><a id="q"></a>1.1. Q?</h2><p>Text.</p>
<div class="note"><h3 class="title">Note</h3><p>Mind it.</p></div>
<p>More.</p></div>"""

POD = """=head1 NAME

perlfaq0 - nothing

=head2 How do I print C<< <FH> >>? X<print> X<FH>

Use C<print> or L<perlfunc/"print FILEHANDLE">, see L<the
page|http://x.org/> and L<perlop>. B<I<Mind> E<lt>this E<gt>>.

    print <FH>;

    exit;

=over 4

=item Z<>First

one

=back

=begin hidden

secret

=end hidden

=cut
"""


def test_pages_of_sphinx_are_cut_at_headings_without_menus():
    assert html_sections(SPHINX) == [
        Section("faq", "FAQ", ""),
        Section("why", "Why & how?", "Because it is x < y.\nif x:\n    y()\none\ntwo\nthree"),
    ]


def test_pages_of_docbook_keep_notes_in_their_section():
    assert html_sections(DOCBOOK) == [
        Section("c", "Chapter 1", ""),
        Section("q", "1.1. Q?", "Text.\nNote\nMind it.\nMore."),
    ]


def test_text_above_the_first_heading_and_unclosed_tags():
    page = "<body><p>Above.<p>It is.<h2><a name=x>One?</a></h2><p>Below<i>.</i><h2>Two?</h2>End"
    assert html_sections(page) == [
        Section("", "", "Above.\nIt is."),
        Section("x", "One?", "Below."),
        Section("", "Two?", "End"),
    ]


def test_pod_is_read_without_its_codes():
    text = (
        "Use print or print FILEHANDLE, see the page and perlop. Mind <this >.\n"
        "    print <FH>;\n    exit;\nFirst\none"
    )
    assert pod_sections(POD) == [
        Section("", "", ""),
        Section("", "NAME", "perlfaq0 - nothing"),
        Section("", "How do I print <FH>?", text),
    ]


def test_passages_end_with_lines_and_long_lines_at_words():
    text = "a b c\nd e\nf\n1 2 3 4 5 6 7 8 9 10 11\ng"
    assert list(passages(text, 5)) == ["a b c\nd e", "f", "1 2 3 4 5", "6 7 8 9 10", "11\ng"]
    assert list(passages("", 5)) == []
    assert list(passages("one", 5)) == ["one"]
