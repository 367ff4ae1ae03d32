-- The template module alone, with files from a table.

local files

local host = {
  require = function(name) return dofile("lua/moontide/" .. name .. ".lua") end,
  null = setmetatable({}, { __tostring = function() return "null" end }),
  pairs = pairs,
  template_source = function(path)
    if not files[path] then error("no template " .. path, 0) end
    return files[path]
  end,
}

local function fresh()
  return assert(loadfile("lua/moontide/template.lua"))(host)
end

local function render(source, data, more)
  files = more or {}
  files["main.hbs"] = source
  return fresh().load("main.hbs"):render(data or {})
end

local function fails(source, data, more)
  local ok, err = pcall(render, source, data, more)
  assert.is_false(ok)
  return err
end

describe("template", function()
  it("fills in and escapes", function()
    assert.equal("a &lt;b&gt; &amp; &quot;c&quot; &#x27;&#x60;&#x3D;",
      render("a {{x}}", { x = "<b> & \"c\" '`=" }))
    assert.equal("<b> <b>", render("{{{x}}} {{&x}}", { x = "<b>" }))
  end)

  it("prints all digits of a number", function()
    assert.equal("1234567890123456 9007199254740992 100000000000000000000 1e+21",
      render("{{a}} {{b}} {{c}} {{d}}", { a = 1234567890123456, b = 2 ^ 53, c = 1e20, d = 1e21 }))
    assert.equal("2.45 123456789012.345 0.30000000000000004 0.1 0",
      render("{{a}} {{b}} {{c}} {{d}} {{e}}",
        { a = 2.45, b = 123456789012.345, c = 0.1 + 0.2, d = 0.1, e = -0.0 }))
  end)

  it("prints values as Handlebars does", function()
    assert.equal("1 1.5 true false  1,2 [object Object]",
      render("{{a}} {{b}} {{c}} {{d}} {{e}} {{f}} {{g}}",
        { a = 1, b = 1.5, c = true, d = false, e = host.null, f = { 1, 2 }, g = { x = 1 } }))
    assert.equal("9007199254740993", render("{{n}}", { n = 9007199254740993LL }))
  end)

  it("follows paths", function()
    local data = { a = { b = { c = "x" }, ["odd name"] = "y" }, list = { "p", "q" } }
    assert.equal("x x y q 2 ", render("{{a.b.c}} {{a/b/c}} {{a.[odd name]}} {{list.1}} "
      .. "{{list.length}} {{no.such.path}}", data))
    assert.equal("x", render("{{#with a}}{{this.b.c}}{{/with}}", data))
    assert.equal("p", render("{{#with a}}{{../list.0}}{{/with}}", data))
    assert.equal("p", render("{{#with a}}{{#with b}}{{@root.list.0}}{{/with}}{{/with}}", data))
  end)

  it("walks lists and objects", function()
    assert.equal("0a1b", render("{{#each x}}{{@index}}{{this}}{{/each}}", { x = { "a", "b" } }))
    assert.equal("[a,b]", render("{{#each x}}{{#if @first}}[{{/if}}{{.}}{{#if @last}}]{{else}},"
      .. "{{/if}}{{/each}}", { x = { "a", "b" } }))
    assert.equal("k=v;", render("{{#each x}}{{@key}}={{this}};{{/each}}", { x = { k = "v" } }))
    assert.equal("none", render("{{#each x}}?{{else}}none{{/each}}", { x = {} }))
    assert.equal("0.0 0.1 1.0 ",
      render("{{#each x}}{{#each this}}{{@../index}}.{{@index}} {{/each}}{{/each}}",
        { x = { { 1, 2 }, { 3 } } }))
  end)

  it("names what it walks", function()
    assert.equal("a0b1",
      render("{{#each x as |item i|}}{{item}}{{i}}{{/each}}", { x = { "a", "b" } }))
    assert.equal("v", render("{{#with a as |z|}}{{z.k}}{{/with}}", { a = { k = "v" } }))
  end)

  it("decides", function()
    local source = "{{#if a}}A{{else if b}}B{{else}}C{{/if}}"
    assert.equal("A", render(source, { a = 1 }))
    assert.equal("B", render(source, { b = true }))
    assert.equal("C", render(source, { a = 0, b = "" }))
    assert.equal("zero", render("{{#if a includeZero=true}}zero{{/if}}", { a = 0 }))
    assert.equal("no", render("{{#unless a}}no{{/unless}}", {}))
    assert.equal("no", render("{{^a}}no{{/a}}", { a = false }))
    assert.equal("no", render("{{#a}}yes{{^}}no{{/a}}", { a = false }))
  end)

  it("keeps ../ out of conditions", function()
    assert.equal("x1x2", render("{{#each l}}{{#if this}}{{../n}}{{this}}{{/if}}{{/each}}",
      { l = { 1, 2 }, n = "x" }))
  end)

  it("treats {{#name}} of a value as a section", function()
    assert.equal("12", render("{{#l}}{{.}}{{/l}}", { l = { 1, 2 } }))
    assert.equal("v", render("{{#o}}{{k}}{{/o}}", { o = { k = "v" } }))
    assert.equal("", render("{{#no}}x{{/no}}", {}))
  end)

  it("includes partials", function()
    local who = { ["who.hbs"] = "{{name}}" }
    assert.equal("hi Ann!", render("hi {{> who}}!", { name = "Ann" }, who))
    assert.equal("Bob", render("{{> who p}}", { p = { name = "Bob" } }, who))
    assert.equal("Ann & Eve", render("{{> who name='Eve'}}", { other = "Ann" },
      { ["who.hbs"] = "{{other}} & {{name}}" }))
    assert.equal("  a\n  b\n", render("  {{> p}}\n", {}, { ["p.hbs"] = "a\nb\n" }))
    local leaf = { v = 3, kids = {} }
    assert.equal("1(2(3()))", render("{{> tree}}", { v = 1, kids = { { v = 2, kids = { leaf } } } },
      { ["tree.hbs"] = "{{v}}({{#each kids}}{{> tree}}{{/each}})" }))
    assert.matches("nested too deep", fails("{{> p}}", {}, { ["p.hbs"] = "{{> p}}" }))
  end)

  it("chooses a partial by a subexpression", function()
    assert.equal("B", render("{{> (lookup . 'which')}}", { which = "b" }, { ["b.hbs"] = "B" }))
  end)

  it("calls helpers with arguments, hash and subexpressions", function()
    files = { ["m.hbs"] = "{{join a (up 'b') 3 sep='-'}} {{{link 'x' href=u}}}" }
    local template = fresh()
    template.helper("up", function(s) return s:upper() end)
    template.helper("join", function(a, b, c, o)
      return a .. o.hash.sep .. b .. o.hash.sep .. c
    end)
    template.helper("link", function(text, o)
      return ("<a href='%s'>%s</a>"):format(o.hash.href, text)
    end)
    assert.equal("q-B-3 <a href='/'>x</a>", template.load("m.hbs"):render { a = "q", u = "/" })
  end)

  it("calls block helpers", function()
    files = { ["m.hbs"] = "{{#twice n=2}}{{x}}{{else}}none{{/twice}}"
      .. "{{#never}}a{{else}}b{{/never}}" }
    local template = fresh()
    template.helper("twice", function(o) return template.safe(o.fn():rep(o.hash.n)) end)
    template.helper("never", function(o) return o.inverse() end)
    assert.equal("&lt;&lt;b", template.load("m.hbs"):render { x = "<" })
  end)

  it("keeps safe text", function()
    files = { ["m.hbs"] = "{{br}}" }
    local template = fresh()
    template.helper("br", function() return template.safe("<br>") end)
    assert.equal("<br>", template.load("m.hbs"):render {})
  end)

  it("takes lines that hold only a tag out of the text", function()
    assert.equal("a\nb\nc\n", render("a\n{{#if x}}\nb\n{{/if}}\nc\n", { x = true }))
    assert.equal("a\nc\n", render("a\n  {{! note }}  \nc\n"))
    assert.equal("x\ny\n", render("{{#each l}}\n{{.}}\n{{/each}}\n", { l = { "x", "y" } }))
    assert.equal("a x\n", render("a {{#if x}}x{{/if}}\n", { x = true }))
  end)

  it("obeys ~ and comments and escapes", function()
    assert.equal("abc", render("a {{~x~}} c", { x = "b" }))
    assert.equal("ab", render("a{{!-- }} -- --}}b"))
    assert.equal("{{x}} v", render("\\{{x}} {{x}}", { x = "v" }))
    assert.equal("\\v", render("\\\\{{x}}", { x = "v" }))
  end)

  it("names file and line of every error", function()
    assert.equal("main.hbs:2: {{#if}} has no {{/if}}", fails("a\n{{#if x}}"))
    assert.equal("main.hbs:2: {{/each}} does not close {{#if}} of line 1",
      fails("{{#if x}}\n{{/each}}"))
    assert.equal("main.hbs:1: {{/if}} closes nothing", fails("{{/if}}"))
    assert.equal("main.hbs:3: there is no helper nope", fails("\n\n{{nope 1}}"))
    assert.equal("main.hbs:1: the tag has no end", fails("{{x"))
    assert.equal("main.hbs:1: the comment has no end", fails("{{!-- x }}"))
    assert.matches("^main.hbs:2: partial gone: ", fails("\n{{> gone}}"))
    assert.matches("^main.hbs:1: partial bad: bad.hbs:2:",
      fails("{{> bad}}", {}, { ["bad.hbs"] = "\n{{/x}}" }))
    assert.matches("raw blocks", fails("{{{{raw}}}}x{{{{/raw}}}}"))
    assert.matches("partial blocks", fails("{{#> layout}}{{/layout}}"))
  end)

  it("stays linear on long input", function()
    local long = ("word {{x}}   "):rep(20000) .. (" "):rep(200000)
    local started = os.clock()
    assert.equal(20000 * 9 + 200000, #render(long, { x = "y" }) )
    assert.is_true(os.clock() - started < 2)
  end)
end)
