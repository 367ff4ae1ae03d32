# moontide's own Lua modules are part of the binary: a worker reads no files.
# Run as a script (cmake -P) it writes the C source; included, it adds the rule.
if(CMAKE_SCRIPT_MODE_FILE)
    set(text "/* Made from lua/moontide by src/worker/embed.cmake. */\n")
    string(APPEND text "#include \"worker/embed.h\"\n\n")
    set(table "const struct embedded embedded_modules[] = {\n")
    file(GLOB modules ${FOLDER}/*.lua)
    foreach(file ${modules})
        get_filename_component(name ${file} NAME_WE)
        file(READ ${file} hex HEX)
        string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
        string(REGEX REPLACE "(................................................................................)"
            "\\1\n" bytes "${bytes}")
        string(APPEND text
            "static const unsigned char ${name}_lua[] = {\n${bytes}0};\n")
        string(APPEND table
            "    {\"${name}\", ${name}_lua, sizeof(${name}_lua) - 1},\n")
    endforeach()
    string(APPEND text "\n${table}    {0, 0, 0},\n};\n")
    file(WRITE ${OUTPUT} "${text}")
    return()
endif()

file(GLOB mt_lua_modules CONFIGURE_DEPENDS
    ${PROJECT_SOURCE_DIR}/lua/moontide/*.lua)
set(mt_embedded ${CMAKE_CURRENT_BINARY_DIR}/embedded_lua.c)
add_custom_command(OUTPUT ${mt_embedded}
    COMMAND ${CMAKE_COMMAND} -DFOLDER=${PROJECT_SOURCE_DIR}/lua/moontide
        -DOUTPUT=${mt_embedded}
        -P ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    DEPENDS ${mt_lua_modules} ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    VERBATIM)
if(TARGET mt_worker)
    target_sources(mt_worker PRIVATE ${mt_embedded})
endif()
