use super::*;
use proptest::prelude::*;
use serde_json::json;

fn template(source: &str) -> Template {
    Template::parse(source).unwrap()
}

fn text(source: &str, context: &Value) -> String {
    template(source).render(context).unwrap()
}

fn url(source: &str, context: &Value) -> Result<String, String> {
    template(source).render_url(context)
}

impl Template {
    /// Returns the template with one more function, for what no template can do.
    pub(crate) fn with_function(&self, name: &'static str, function: fn(String) -> bool) -> Self {
        let Compiled { source, engine, url, expression, plain } = &*self.0;
        let mut engine = engine.clone();
        engine.add_function(name, function);
        let (expression, plain) = (expression.clone(), plain.clone());
        Self(Arc::new(Compiled { source: source.clone(), engine, url, expression, plain }))
    }
}

#[test]
fn strings_are_inserted_as_they_are_and_the_rest_as_json() {
    let context = json!({"s": "<Çınar & \"Kuğu\">", "n": 1.0, "b": true, "nil": null, "o": {"z": [1, "ş"], "a": {}}});
    assert_eq!(text("{{ s }}", &context), "<Çınar & \"Kuğu\">");
    assert_eq!(text("{{ n }} {{ b }} {{ nil }} {{ o }}", &context), r#"1.0 true null {"z":[1,"ş"],"a":{}}"#);
}

#[test]
fn tojson_is_plain_json() {
    let context = json!({"artwork": {"title": "Kaplumbağa <Terbiyecisi> & 'Kuğu'", "year": 1906}});
    assert_eq!(
        text("{{ artwork | tojson }}", &context),
        r#"{"title":"Kaplumbağa <Terbiyecisi> & 'Kuğu'","year":1906}"#
    );
    assert_eq!(text("{{ artwork.title | tojson }}", &context), r#""Kaplumbağa <Terbiyecisi> & 'Kuğu'""#);
    assert_eq!(text("{{ {'a': [1]} | tojson(indent=1) }}", &context), "{\n \"a\": [\n  1\n ]\n}");
    assert_eq!(text("{{ {'a': 1} | tojson(1) }}", &context), "{\n \"a\": 1\n}");
    assert_eq!(
        template("{{ artwork.artist | tojson }}").render(&context).unwrap_err(),
        "could not serialize to value: a part of the value is undefined (in `tojson`)"
    );
}

#[test]
fn what_is_undefined_is_an_error_that_names_it() {
    let context = json!({"value": {"title": "x"}});
    assert_eq!(template("a {{ value.artist }}").render(&context).unwrap_err(), "`value.artist` is undefined");
    assert_eq!(template("{{ value.artist.name }}").render(&context).unwrap_err(), "`value.artist.name` is undefined");
    assert_eq!(template("{{ value.artist }}").value(&context).unwrap_err(), "`value.artist` is undefined");
    assert_eq!(template("{{ value.artist }}").test(&context).unwrap_err(), "`value.artist` is undefined");
    assert_eq!(text("{{ value.artist | default('?') }}", &context), "?");
}

#[test]
fn what_enters_a_url_is_percent_encoded() {
    let context = json!({"name": "Mona Lisa/x?", "tr": "Kaplumbağa", "n": 5, "b": true, "plus": "a+b&c=d#%2F~-._"});
    assert_eq!(url("/a/{{ name }}", &context).unwrap(), "/a/Mona%20Lisa%2Fx%3F");
    assert_eq!(
        url("http://h/é/{{ tr }}?q={{ plus }}", &context).unwrap(),
        "http://h/é/Kaplumba%C4%9Fa?q=a%2Bb%26c%3Dd%23%252F~-._"
    );
    assert_eq!(url("/{{ n }}/{{ b }}/{{ n + 0.5 }}", &context).unwrap(), "/5/true/5.5");
    assert_eq!(url("/{% for c in ['ü', '/'] %}{{ c }},{% endfor %}", &context).unwrap(), "/%C3%BC,%2F,");
    assert_eq!(text("/a/{{ name }}", &context), "/a/Mona Lisa/x?");
}

#[test]
fn nothing_escapes_the_encoding() {
    let context = json!({"name": "a/b"});
    assert_eq!(url("/{% set x = name %}{{ x }}", &context).unwrap(), "/a%2Fb");
    assert_eq!(url("/{% autoescape false %}{{ name }}{% endautoescape %}", &context).unwrap(), "/a%2Fb");
    assert_eq!(url("/{{ '/' ~ name }}", &context).unwrap(), "/%2Fa%2Fb");
    for source in ["{{ name | safe }}", "{{ name | escape }}", "{{ name | e }}"] {
        assert!(Template::parse(source).unwrap_err().message.contains("templates do not escape HTML"));
    }
}

#[test]
fn the_filter_path_keeps_slashes_and_encodes_the_rest() {
    let context = json!({"slug": "blog/2024/ş ?#%2F", "n": 5, "one": "a", "list": ["a"]});
    assert_eq!(url("/p/{{ slug | path }}.json", &context).unwrap(), "/p/blog/2024/%C5%9F%20%3F%23%252F.json");
    assert_eq!(
        url("/{{ n | path }}/{{ one | path }}?q={{ slug | path }}", &context).unwrap().split('?').next(),
        Some("/5/a")
    );
    // Only the filter's own result keeps slashes.
    assert_eq!(url("/{{ (slug | path) ~ '/x' }}", &json!({"slug": "a/b"})).unwrap(), "/a%2Fb%2Fx");
    assert_eq!(url("/{{ slug | path | upper }}", &json!({"slug": "a/b"})).unwrap(), "/A%2FB");
    let refused = [
        url("/{{ list | path }}", &context),
        template("{{ slug | path }}").render(&context),
        template("{{ slug | path }}").value(&context).map(|value| value.to_string()),
    ];
    for message in refused {
        assert!(message.as_ref().is_err_and(|message| message.contains("path")), "{message:?}");
    }
}

#[test]
fn the_filter_path_refuses_to_leave_its_place() {
    for slug in ["..", "../x", "a/../b", "a/.", "./a", "", "/", "/a", "a/", "a//b"] {
        let refused = url("/p/{{ slug | path }}", &json!({"slug": slug}));
        assert!(refused.as_ref().is_err_and(|message| message.contains("path")), "{slug}: {refused:?}");
    }
    // What the URL makes of a segment and its neighbours is checked, too.
    assert!(url("/p/.{{ slug | path }}", &json!({"slug": "%2e"})).is_ok(), "its percent sign is encoded");
    assert!(url("/p/%2e{{ slug }}/{{ other | path }}", &json!({"slug": ".", "other": "a"})).is_err());
}

proptest! {
    #[test]
    fn a_path_of_any_text_stays_below_its_place(slug in "[a./%\\\\?#é]{0,12}") {
        if let Ok(text) = url("http://h/p/{{ slug | path }}", &json!({"slug": slug})) {
            let parsed = url::Url::parse(&text).unwrap();
            prop_assert_eq!(parsed.as_str(), &text);
            let segments: Vec<String> = parsed.path_segments().unwrap().skip(1)
                .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8().unwrap().into_owned()).collect();
            prop_assert_eq!(segments.join("/"), slug);
        }
    }
}

#[test]
fn a_path_that_would_be_cut_short_is_refused() {
    for dots in [".", "..", "%2e", "%2E."] {
        let message = url("/a/{{ name }}/b", &json!({"name": dots}));
        if dots.starts_with('%') {
            assert!(message.is_ok(), "its percent sign is encoded: {message:?}");
        } else {
            assert_eq!(message.unwrap_err(), format!("a path segment would be `{dots}`, which no URL can carry"));
        }
    }
    assert!(url("/a/%2e{{ name }}", &json!({"name": "."})).is_err());
    assert_eq!(url("/a?x={{ name }}", &json!({"name": ".."})).unwrap(), "/a?x=..");
    assert_eq!(url("/a/v{{ name }}", &json!({"name": ".."})).unwrap(), "/a/v..");
    assert!(url("http://h/{{ name }}", &json!({"name": ".."})).is_err());
}

#[test]
fn an_empty_path_segment_is_refused_where_a_value_was_meant() {
    let empty = json!({"name": ""});
    assert_eq!(
        url("/artworks/{{ name }}", &empty).unwrap_err(),
        "an inserted value is empty, which leaves a path segment of `/artworks/{{ name }}` empty"
    );
    assert_eq!(url("/artworks/a{{ name }}/?q={{ name }}", &empty).unwrap(), "/artworks/a/?q=");
}

#[test]
fn null_lists_and_objects_are_no_part_of_a_url() {
    for (value, kind) in [(json!(null), "none"), (json!([1]), "sequence"), (json!({}), "map")] {
        assert_eq!(
            url("/{{ x }}", &json!({"x": value})).unwrap_err(),
            format!("{kind} cannot be part of a URL; only text, numbers and booleans can (in `x`)")
        );
    }
}

proptest! {
    #[test]
    fn whatever_is_inserted_arrives_whole(name in "[^\u{0}]{1,12}") {
        prop_assume!(name != "." && name != "..");
        let rendered = url("http://h/a/{{ name }}/b?q={{ name }}", &json!({"name": name})).unwrap();
        let parsed = url::Url::parse(&rendered).unwrap();
        let segments: Vec<&str> = parsed.path_segments().unwrap().collect();
        prop_assert_eq!(segments.len(), 3);
        let decoded = percent_encoding::percent_decode_str(segments[1]).decode_utf8().unwrap();
        prop_assert_eq!(decoded, name.as_str());
        let query = parsed.query_pairs().next().unwrap().1.into_owned();
        prop_assert_eq!(query, name);
    }

    #[test]
    fn parsing_and_rendering_never_panic(source in "[{}%#a-z0-9 .|'\"()~+*/=!,\\[\\]ğ-]{0,40}") {
        if let Ok(template) = Template::parse(&source) {
            let context = json!({"a": "x", "value": {"b": [1, 2.5, null]}});
            let _ = (template.render(&context), template.render_url(&context));
            let _ = (template.test(&context), template.value(&context));
            for name in template.names() {
                let _ = template.locate(&name);
            }
        }
    }
}

#[test]
fn a_test_is_an_expression_or_a_text_that_says_so() {
    let context = json!({"value": {"error": "no", "n": 0, "flag": "false"}});
    let says = |source: &str| template(source).test(&context);
    assert_eq!(says("{{ value.error is undefined }}"), Ok(false));
    assert_eq!(says("{{ value.other is undefined }}"), Ok(true));
    assert_eq!(says(" {{- value.n == 0 -}} "), Ok(true));
    assert_eq!(says("{{ value.n }}"), Ok(false));
    assert_eq!(says("{% if value.n == 0 %}true{% else %}false{% endif %}"), Ok(true));
    assert_eq!(says(" {% if value.n %}true{% else %}False{% endif %} "), Ok(false));
    assert_eq!(says("x{{ value.n }}").unwrap_err(), "`x{{ value.n }}` renders neither `true` nor `false`");
}

fn shape(value: Value) -> Shape {
    fn node(value: Value) -> Node {
        match value {
            Value::String(source) => Node::Template(template(&source)),
            Value::Array(items) => Node::Array(items.into_iter().map(node).collect()),
            Value::Object(fields) => Node::Object(fields.into_iter().map(|(name, item)| (name, node(item))).collect()),
            plain => Node::Plain(plain),
        }
    }
    Shape::new(node(value))
}

#[test]
fn a_sole_expression_keeps_its_type_in_a_shape() {
    let context = json!({"value": {"n": 3, "f": 1.5, "l": [1, {"a": null}], "t": "metin", "big": 18_446_744_073_709_551_615_u64}});
    let document = json!({
        "z": "{{ value.n }}", "a": "{{- value.l -}}", "text": "n={{ value.n }}", "list": ["{{ value.f }}", 7, true],
        "two": "{{ value.n }}{{ value.n }}", "literal": "x", "none": "{{ none }}", "big": "{{ value.big }}",
        "map": "{{ {'k': value.t, 'braces': '}}'} }}",
    });
    let rendered = shape(document).render(&context).unwrap();
    assert_eq!(
        rendered.to_string(),
        r#"{"z":3,"a":[1,{"a":null}],"text":"n=3","list":[1.5,7,true],"two":"33","literal":"x","none":null,"big":18446744073709551615,"map":{"k":"metin","braces":"}}"}}"#
    );
}

#[test]
fn a_shape_with_an_undefined_part_is_an_error_that_says_where() {
    let context = json!({"value": {}});
    let fails = |document: Value| shape(document).render(&context).unwrap_err();
    assert_eq!(fails(json!({"a": {"b": "{{ value.x }}"}})), "a: b: `value.x` is undefined");
    assert_eq!(fails(json!("{{ {'k': value.x} }}")), "a part of the value is undefined");
    assert_eq!(fails(json!("{{ range }}")), "plain object is not JSON");
}

#[test]
fn time_and_size_are_bounded() {
    let loops = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a }}{% endfor %}{% endfor %}";
    assert_eq!(
        template(loops).render(&json!({})).unwrap_err(),
        "the template takes too many steps; loop over fewer items"
    );
    let long = "{{ 'x' * 5000000 }}{{ 'x' * 5000000 }}";
    assert_eq!(template(long).render(&json!({})).unwrap_err(), "the text would be longer than 8388608 bytes");
    let document = "{{ ['x' * 5000000, 'x' * 5000000] }}";
    assert_eq!(template(document).value(&json!({})).unwrap_err(), "the document would be longer than 8388608 bytes");
}

#[test]
fn what_could_grow_without_end_is_no_template() {
    let doubled = format!("{{% set a = 'x' %}}{}{{{{ a }}}}", "{% set a = a ~ a %}".repeat(7));
    let nested = format!("{{% set a = 'x' %}}{}{{{{ a }}}}", "{% set a = [a, a, '%}', a] %}".repeat(4));
    let given = "{% with a = 'x' %}{% with b = a ~ a ~ a ~ a ~ a %}{% with c = b ~ b ~ b ~ b ~ b %}\
                 {% with d = c ~ c ~ c %}{{ d }}{% endwith %}{% endwith %}{% endwith %}{% endwith %}";
    for (source, message) in [
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "`{% macro %}` is not supported"),
        ("{% filter upper %}x{% endfilter %}", "`{% filter %}` is not supported"),
        ("{% set a %}x{% endset %}{{ a }}", "`{% set %}` over a block is not supported"),
        ("{% set a | replace('=', '') %}x{% endset %}{{ a }}", "`{% set %}` over a block is not supported"),
        ("{% for a in b recursive %}{{ loop(a) }}{% endfor %}", "recursive loops are not supported"),
        ("{%- for a in [1] recursive -%}{{ loop(a) }}{% endfor %}", "recursive loops are not supported"),
        (&doubled, "too many assignments use assigned values"),
        (&nested, "too many assignments use assigned values"),
        (given, "too many assignments use assigned values"),
    ] {
        let refused = Template::parse(source).unwrap_err().message;
        assert!(refused.starts_with(message), "{source}: {refused}");
    }
    let error = template("{% set n = namespace(a=1) %}{{ n.a }}").render(&json!({})).unwrap_err();
    assert!(error.contains("namespace"), "{error}");
    // What is usual is not hindered.
    let usual = "{% set a = recursive %}{% set b = a ~ a %}{% set c = b|upper %}{% for recursive in [c, 'y'] %}\
                 {% set d = recursive ~ a %}{{ d }}{% endfor %}{% for x in recursive %}{% if x == 'x' %}{{ x }}{% endif %}{% endfor %}";
    assert_eq!(text(usual, &json!({"recursive": "x"})), "XXxyxx");
}

#[test]
fn filters_make_no_more_than_is_to_be_had() {
    let context = json!({"text": "a\n".repeat(100_000), "n": 1_000_000_000_000_000_u64, "some": 3, "list": ["b", "a"]});
    for source in [
        "{{ text|indent(n) }}",
        "{{ text|indent(width=1000) }}",
        "{{ 'x'|indent(9223372036854775807, true) }}",
        "{{ text|replace('a', text) }}",
        "{{ text|replace('', text) }}",
        "{{ range(99999)|join(text) }}",
        "{{ range(99999)|map('string')|join(d=text) }}",
        "{{ '%999999999d'|format(1) }}",
        "{{ '%99999999999999999999999d'|format(1) }}",
        "{{ ('%s' * 1000)|format(text) }}",
        "{{ [1]|slice(n)|list }}",
        "{{ [1]|batch(n, 'x')|list }}",
        "{{ [1]|batch(count=n, fill_with='x') }}",
        "{{ ([1] * 90000000)|list }}",
        "{{ ([1] * 90000000)|sort }}",
        "{{ ([1] * 90000000)|chain([2])|list }}",
        "{{ ([1] * 90000000)|map('string')|list }}",
        "{{ ('x' * 90000000)|upper }}",
        "{{ [['x' * 5000000] * 100]|string }}",
        "{{ ['x']|map('indent', n)|list }}",
    ] {
        let refused = template(source).render(&context).unwrap_err();
        assert!(!refused.is_empty(), "{source}");
        eprintln!("{source}: {refused}");
    }
    for (source, rendered) in [
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ 'a\nb'|indent(width=some, first=true) }}", "   a\n   b"),
        ("{{ 'aXbX'|replace('X', '--') }}", "a--b--"),
        (
            "{{ list|join(', ') }} {{ list|join(d='+') }} {{ 'abc'|join('.') }} {{ range(3)|join }}",
            "b, a b+a a.b.c 012",
        ),
        (
            "{{ list|chain(['c'])|join('-') }} {{ {'a': 1}|items|list }} {{ list|zip(list)|list|length }}",
            "b-a-c [[\"a\",1]] 2",
        ),
        ("{{ '%05d %s'|format(42, 'x') }} {{ '%4d'|format(1) }}", "00042 x    1"),
        (
            "{{ list|sort|join }} {{ list|map('upper')|list }} {{ [1, 2, 3]|batch(2)|list }}",
            "ab [\"B\",\"A\"] [[1,2],[3]]",
        ),
        (
            "{{ [1, 2, 3]|slice(2)|list }} {{ 'a b'|split|last }} {{ 'ab'|title }} {{ [3]|string }}",
            "[[1,2],[3]] b Ab [3]",
        ),
    ] {
        assert_eq!(text(source, &context), rendered, "{source}");
    }
    let undefined = |filter| template(&format!("{{{{ nowhere|{filter} }}}}")).render(&context).unwrap_err();
    assert_eq!(undefined("upper").replace("upper", "trim"), undefined("trim"), "as a filter that is left as it was");
}

#[test]
fn faults_are_found_when_a_template_is_parsed() {
    for (source, message, piece) in [
        ("a {{ b", "syntax error: unexpected end of input, expected end of variable block", "b"),
        (
            "ı {{ 'ş' ~ name.ıd }}",
            "syntax error: unexpected character `ı`: names consist of ASCII letters, digits and `_`",
            "ı",
        ),
        ("{{ a & b }}", "syntax error: unexpected character `&`", "&"),
        ("{% for %}", "syntax error: unexpected end of block, expected in", "%}"),
        ("{{ a | shout }}", "unknown filter `shout`", "shout"),
        ("{{ a is loud }}", "unknown test `is loud`", "loud"),
        ("{% if a is not loud %}{% endif %}", "unknown test `is loud`", "loud"),
        (
            "{{ a | urlencode }}",
            "unknown filter `urlencode`: values in a URL are always encoded, so remove it",
            "urlencode",
        ),
        (
            "{% include 'x' %}",
            "`{% include %}` needs other templates, which do not exist; write the text here",
            "include",
        ),
        (
            "{% extends 'x' %}",
            "`{% extends %}` needs other templates, which do not exist; write the text here",
            "extends",
        ),
    ] {
        let error = Template::parse(source).unwrap_err();
        assert_eq!(error.message, message);
        assert_eq!(&source[error.at.unwrap()], piece, "{source}");
    }
}

#[test]
fn names_from_outside_are_known_and_found() {
    let template =
        template("{% set a = b.c %}{{ a.x }}{{ 'd' }}{% for e in f %}{{ e }}{{ range(2) }}{% endfor %}{{ env.X }}");
    assert_eq!(template.names(), ["b.c", "env.X", "f"].map(str::to_owned).into());
    let source = template.source();
    assert_eq!(&source[template.locate("b.c").unwrap()], "b.c");
    assert_eq!(template.locate("f"), source.find("f %}").map(|at| at..at + 1));
    assert_eq!(template.locate("nowhere"), None);
}

#[test]
fn the_environment_is_bound_and_does_not_show() {
    let bound = template("Bearer {{ env.TOKEN }}").with_env(&[("TOKEN".to_owned(), "s3cret/".to_owned())].into());
    assert_eq!(bound.render(&json!({})).unwrap(), "Bearer s3cret/");
    assert_eq!(bound.render_url(&json!({})).unwrap(), "Bearer s3cret%2F");
    assert_eq!(bound.render(&json!({"env": {"TOKEN": "***"}})).unwrap(), "Bearer ***");
    assert_eq!(format!("{bound:?} {bound}"), r#"Template("Bearer {{ env.TOKEN }}") Bearer {{ env.TOKEN }}"#);
}

#[test]
fn a_plain_url_is_what_the_engine_makes() {
    let context = json!({"a": "Mona Lisa/?é", "b": "", "n": 7, "_c": "x"});
    for source in [
        "http://h/{{ a }}",
        "http://h/{{a}}/{{  _c }}?q={{ b }}&r={{ a }}",
        "http://h/x{{ b }}y",
        "http://h/{{ n }}",
        "http://h/}} {{ a }} }",
        "http://h/{ {{ a }} {",
        "http://h/{{ a | upper }}",
        "http://h/{{- a -}} x",
        "http://h/{{ missing }}",
        "http://h/{{ 'x' }}",
        "http://h/{# c #}{{ a }}",
        "http://h/{{ a }}\n",
    ] {
        let template = Template::parse(source).unwrap();
        let (plain, engine) = (template.plain_url(&context), template.render_as(URL, &context));
        if let Some(plain) = plain {
            assert_eq!(Ok(plain), engine, "{source}");
        }
    }
    assert!(Template::parse("http://h/{{ a }}").unwrap().plain_url(&context).is_some());
}

#[test]
fn entries_in_a_url_are_joined_only_if_they_are_told_apart() {
    let context = json!({ "entries": [{ "id": "a b" }, { "id": "7" }], "names": ["a,b", "c"] });
    for (source, url) in [
        ("http://h/?ids={{ entries | map(attribute='id') | join(',') }}", "http://h/?ids=a%20b%2C7"),
        ("http://h/?ids={{ entries | join(',', attribute='id') }}", "http://h/?ids=a%20b%2C7"),
        ("http://h/?{% for entry in entries %}id={{ entry.id }}&{% endfor %}", "http://h/?id=a%20b&id=7&"),
        ("http://h/?names={{ names | join('|') }}", "http://h/?names=a%2Cb%7Cc"),
    ] {
        assert_eq!(template(source).of_many().unwrap().render_url(&context).unwrap(), url, "{source}");
    }
    let joined = template("http://h/?names={{ names | join(',') }}");
    let error = joined.of_many().unwrap().render_url(&context).unwrap_err();
    assert!(error.starts_with("`a,b` contains `,`, by which a list in a URL is joined"), "{error}");
    assert_eq!(joined.render_url(&context).unwrap(), "http://h/?names=a%2Cb%2Cc", "a slug is no list of entries");
}
