std = "luajit"
max_line_length = 100
unused_args = false
exclude_files = { "build", ".cache", ".run", "lua/meta" }
files["tests/lua"] = { std = "+busted" }
files["**/*_spec.lua"] = { std = "+busted" }
