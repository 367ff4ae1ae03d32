#include "host/config.h"

#include "base/mem.h"
#include "host/probe.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_DEFAULT    "conf/moontide.lua"
#define CONFIG_TIMEOUT_MS 2000

extern char **environ;

static bool read_file(struct settings *s, const char *path, struct err *err)
{
    json_t *request = json_pack("{s:s, s:s}", "op", "config", "path", path);
    json_t *answer = probe_wait(request, CONFIG_TIMEOUT_MS, err);
    bool ok = answer && settings_apply_json(
                            s, json_object_get(answer, "config"), path, err);

    if (!answer && !strstr(err->msg, path))
        err_wrap(err, "%s", path);
    json_decref(request);
    json_decref(answer);
    return ok;
}

/* The folder that relative paths start at. */
static void base_folder(const char *file, char out[PATH_MAX])
{
    char full[PATH_MAX];
    char *slash;

    if (!file || !realpath(file, full)) {
        if (!getcwd(out, PATH_MAX))
            snprintf(out, PATH_MAX, ".");
        return;
    }
    slash = strrchr(full, '/');
    *slash = '\0';
    slash = strrchr(full, '/');
    if (slash && slash != full && strcmp(slash, "/conf") == 0)
        *slash = '\0';
    snprintf(out, PATH_MAX, "%s", full);
}

static void make_absolute(char **path, const char *base)
{
    char *full;

    if (**path == '/' || !**path)
        return;
    full = xasprintf("%s/%s", base, *path);
    free(*path);
    *path = full;
}

/* The folders next to the configuration file, else those of the product. */
static void find_folder(char **path, const char *base, const char *fallback)
{
    const char *share = config_share_dir();
    char *name = xstrdup(*path);

    make_absolute(path, base);
    if (access(*path, F_OK) != 0 && strcmp(name, fallback) == 0 && share) {
        free(*path);
        *path = xasprintf("%s/%s", share, fallback);
    }
    free(name);
}

/* databases.<name>.url_file: the url is what the file says. */
static bool read_url_file(json_t *database, const char *name, const char *base,
                          struct err *err)
{
    const char *path = json_string_value(json_object_get(database, "url_file"));
    char text[4096], *full;
    size_t len;
    FILE *file;

    if (!path || json_object_get(database, "url"))
        return true;
    full = xstrdup(path);
    make_absolute(&full, base);
    file = fopen(full, "re");
    if (!file) {
        err_set(err, ERR_PERMANENT, "databases.%s.url_file: cannot read %s: %m",
                name, full);
        free(full);
        return false;
    }
    free(full);
    len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    while (len > 0 && strchr(" \r\n\t", text[len - 1]))
        len--;
    json_object_set_new(database, "url", json_stringn(text, len));
    return true;
}

static bool read_url_files(json_t *databases, const char *base, struct err *err)
{
    const char *name;
    json_t *database;

    json_object_foreach(databases, name, database)
        if (!read_url_file(database, name, base, err))
            return false;
    return true;
}

bool config_load(struct settings *s, const struct config_source *from,
                 struct err *err)
{
    const char *path = from->path;
    char base[PATH_MAX];

    settings_init(s);
    if (!path)
        path = getenv("MOONTIDE_CONFIG");
    if (!path && access(CONFIG_DEFAULT, F_OK) == 0)
        path = CONFIG_DEFAULT;
    if (path && !read_file(s, path, err))
        return false;
    if (!settings_apply_env(s, environ, err))
        return false;
    for (size_t i = 0; i < from->n_sets; i++)
        if (!settings_apply_text(s, from->sets[i], err))
            return false;
    base_folder(path, base);
    find_folder(&s->handlers_path, base, "handlers");
    find_folder(&s->handlers_lua, base, "lua");
    find_folder(&s->templates_path, base, "templates");
    if (*s->mail_ca_file)
        make_absolute(&s->mail_ca_file, base);
    return read_url_files(s->databases, base, err) && settings_check(s, err);
}

const char *config_share_dir(void)
{
    static const char *const tries[] = {"/../share/moontide", "/../..",
                                        "/../../.."};
    static char found[PATH_MAX];
    char self[PATH_MAX], candidate[PATH_MAX + 32];
    char *slash;

    if (found[0])
        return found;
    snprintf(self, sizeof(self), "%s", self_path());
    slash = strrchr(self, '/');
    if (!slash)
        return NULL;
    *slash = '\0';
    for (size_t i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
        char *real;

        snprintf(candidate, sizeof(candidate), "%s%s/migrations", self,
                 tries[i]);
        real = realpath(candidate, NULL);
        if (!real)
            continue;
        snprintf(found, sizeof(found), "%.*s",
                 (int)(strlen(real) - strlen("/migrations")), real);
        free(real);
        return found;
    }
    return NULL;
}

bool config_keeps_kafka_transactions(const struct settings *s, struct err *err)
{
    if (!*s->kafka_brokers)
        return err_set(err, ERR_PERMANENT,
                       "transaction = \"kafka\" needs kafka.brokers");
    if (strcmp(s->kafka_brokers, "embedded") == 0)
        return err_set(err, ERR_PERMANENT,
                       "transaction = \"kafka\" needs a real Kafka: the "
                       "embedded broker knows no transactions");
    if (*s->database_url && strcmp(s->outbox_enabled, "off") != 0)
        return err_set(err, ERR_PERMANENT,
                       "transaction = \"kafka\" is for events from Kafka "
                       "alone: set outbox.enabled = \"off\"");
    return true;
}
