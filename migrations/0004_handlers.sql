-- The tables of the four handlers that come with moontide.

-- migrate:up

-- audit: one row for each event, for ever. The payload is json and not jsonb:
-- it keeps the text as it came, and takes what jsonb refuses.
CREATE TABLE event_audit_log (
    id                bigserial   PRIMARY KEY,
    event_id          text        NOT NULL UNIQUE,
    event_type        text        NOT NULL,
    event_version     int         NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint,
    occurred_at       timestamptz,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    actor             text,
    correlation_id    text,
    place             text        NOT NULL,
    payload           json        NOT NULL,
    metadata          json        NOT NULL
);
CREATE INDEX event_audit_log_aggregate ON event_audit_log (aggregate_type, aggregate_id, id);
CREATE INDEX event_audit_log_occurred ON event_audit_log USING brin (occurred_at);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON event_audit_log
    FOR EACH ROW EXECUTE FUNCTION moontide_append_only();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON event_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION moontide_append_only();

-- analytics: how many events, and the sum of what was measured, by the hour and
-- by the day (UTC). `kind` is the outcome or type, `currency` is '' where the
-- sum is not money.
CREATE TABLE event_analytics_hourly (
    hour     timestamptz NOT NULL,
    metric   text        NOT NULL,
    kind     text        NOT NULL,
    currency text        NOT NULL DEFAULT '',
    events   bigint      NOT NULL,
    total    numeric     NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, metric, kind, currency)
) WITH (fillfactor = 50);

CREATE TABLE event_analytics_daily (
    day      date    NOT NULL,
    metric   text    NOT NULL,
    kind     text    NOT NULL,
    currency text    NOT NULL DEFAULT '',
    events   bigint  NOT NULL,
    total    numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (day, metric, kind, currency)
) WITH (fillfactor = 50);

-- compliance
CREATE TABLE consents (
    phone      text        NOT NULL,
    channel    text        NOT NULL DEFAULT 'call',
    granted    boolean     NOT NULL,
    expires_at timestamptz,
    changed_at timestamptz NOT NULL,
    event_id   text        NOT NULL,
    PRIMARY KEY (phone, channel)
);

CREATE TABLE do_not_call (
    phone    text        PRIMARY KEY,
    reason   text        NOT NULL DEFAULT '',
    added_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE compliance_checks (
    event_id   text        PRIMARY KEY,
    event_type text        NOT NULL,
    call_id    text        NOT NULL,
    phone      text        NOT NULL,
    passed     boolean     NOT NULL,
    violations text[]      NOT NULL DEFAULT '{}',
    local_time text,
    called_at  timestamptz NOT NULL,
    checked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX compliance_checks_phone ON compliance_checks (phone, called_at);
CREATE INDEX compliance_checks_call ON compliance_checks (call_id);

-- notification: a message is claimed before it goes out and marked after, so
-- that a retry does not send again what has been sent.
CREATE TABLE notifications (
    event_id   text        NOT NULL,
    channel    text        NOT NULL,
    recipient  text        NOT NULL,
    state      text        NOT NULL DEFAULT 'sending' CHECK (state IN ('sending', 'sent')),
    attempts   int         NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at    timestamptz,
    PRIMARY KEY (event_id, channel)
);

-- migrate:down
DROP TABLE notifications, compliance_checks, do_not_call, consents, event_analytics_daily,
    event_analytics_hourly, event_audit_log;
