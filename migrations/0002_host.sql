-- What the host keeps: how far each handler is, what ended otherwise than by a
-- plain ack, and the flags. Ids of events are text here whatever they are in
-- domain_events, because they also come from Kafka.

-- migrate:up

-- Everything of a handler and partition before `seq` is settled, except what
-- lies in `gaps`. For Kafka seq is the next offset and source_id is cluster and
-- topic id; for the outbox it is the last seq and the system identifier.
-- `epoch` is the fencing token: taking the partition over raises it.
CREATE TABLE event_handler_positions (
    handler_name      varchar(100)   NOT NULL,
    source            text           NOT NULL,
    partition         text           NOT NULL,
    source_id         text           NOT NULL DEFAULT '',
    seq               bigint         NOT NULL,
    gaps              int8multirange NOT NULL DEFAULT '{}',
    last_processed_id text,
    last_processed_at timestamptz,
    updated_at        timestamptz    NOT NULL DEFAULT now(),
    owner             text           NOT NULL DEFAULT '',
    epoch             bigint         NOT NULL DEFAULT 0,
    PRIMARY KEY (handler_name, source, partition)
) WITH (fillfactor = 50);

-- One row for each event whose effects are committed: the proof that a second
-- delivery has nothing to do. Unpartitioned, so that the key holds.
CREATE TABLE event_inbox (
    handler  text        NOT NULL,
    event_id text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (handler, event_id)
);
CREATE INDEX event_inbox_at ON event_inbox USING brin (at);

-- Outcomes other than a plain first-time ack.
CREATE TABLE event_deliveries (
    handler   text        NOT NULL,
    event_id  text        NOT NULL,
    source    text        NOT NULL,
    partition text        NOT NULL,
    place     bigint      NOT NULL,
    outcome   text        NOT NULL
              CHECK (outcome IN ('skip', 'dead', 'redriven', 'discarded')),
    reason    text        NOT NULL DEFAULT '',
    version   text        NOT NULL DEFAULT '',
    attempts  int         NOT NULL DEFAULT 0,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (handler, event_id)
);

-- A delivery given up, with all that is needed to judge it and to run it again.
-- `body` and `key` are the bytes as they came: an event may be legal for Kafka
-- and still be refused by jsonb.
CREATE TABLE event_dead_letters (
    id              bigserial   PRIMARY KEY,
    handler         text        NOT NULL DEFAULT '',
    handler_version text        NOT NULL DEFAULT '',
    event_id        text        NOT NULL DEFAULT '',
    event_type      text        NOT NULL DEFAULT '',
    aggregate_type  text        NOT NULL DEFAULT '',
    aggregate_id    text        NOT NULL DEFAULT '',
    source          text        NOT NULL,
    partition       text        NOT NULL,
    place           bigint      NOT NULL,
    format          text        NOT NULL DEFAULT '',
    key             bytea,
    body            bytea,
    headers         jsonb       NOT NULL DEFAULT '{}',
    facts           jsonb       NOT NULL DEFAULT '{}',
    class           text        NOT NULL,
    code            text        NOT NULL DEFAULT '',
    error           text        NOT NULL DEFAULT '',
    traceback       text        NOT NULL DEFAULT '',
    attempts        int         NOT NULL DEFAULT 0,
    history         jsonb       NOT NULL DEFAULT '[]',
    fingerprint     text        NOT NULL DEFAULT '',
    first_failed_at timestamptz NOT NULL DEFAULT now(),
    failed_at       timestamptz NOT NULL DEFAULT now(),
    state           text        NOT NULL DEFAULT 'dead'
                    CHECK (state IN ('dead', 'redriving', 'redriven', 'discarded')),
    note            text        NOT NULL DEFAULT '',
    UNIQUE (handler, source, partition, place, event_id)
);
CREATE INDEX event_dead_letters_open ON event_dead_letters (handler, class)
    WHERE state = 'dead';
CREATE INDEX event_dead_letters_redriving
    ON event_dead_letters (source, partition, place) WHERE state = 'redriving';
CREATE INDEX event_dead_letters_event ON event_dead_letters (event_id);
CREATE INDEX event_dead_letters_fingerprint ON event_dead_letters (fingerprint);

CREATE TABLE event_flags (
    name       text        PRIMARY KEY,
    state      text        NOT NULL CHECK (state IN ('on', 'off')),
    percent    int         CHECK (percent BETWEEN 0 AND 100),
    when_off   text        NOT NULL DEFAULT 'hold' CHECK (when_off IN ('hold', 'skip')),
    reason     text        NOT NULL DEFAULT '',
    who        text        NOT NULL DEFAULT current_user,
    until      timestamptz,
    previous   jsonb,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Only a hint: whoever hears it reads the table.
CREATE FUNCTION moontide_flags_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('moontide_flags', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER flags_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON event_flags
    FOR EACH STATEMENT EXECUTE FUNCTION moontide_flags_changed();

-- Which version of a handler ran from where to where.
CREATE TABLE event_handler_versions (
    handler    text        NOT NULL,
    partition  text        NOT NULL,
    version    text        NOT NULL,
    from_place bigint      NOT NULL,
    to_place   bigint,
    at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_handler_versions_place
    ON event_handler_versions (handler, partition, from_place);

-- The last statement of every handler's transaction, sent together with its
-- COMMIT: whoever lost a partition meanwhile must not write. The rows are
-- locked in one order, and their lock is what a takeover waits for.
CREATE FUNCTION moontide_fence(handler text, sources text[], partitions text[], epochs bigint[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    wanted int;
    held   int;
BEGIN
    SELECT count(*) INTO wanted
    FROM (SELECT DISTINCT * FROM unnest(sources, partitions, epochs)) AS w;
    SELECT count(*) INTO held
    FROM (SELECT 1
          FROM event_handler_positions AS p
          WHERE p.handler_name = moontide_fence.handler
            AND (p.source, p.partition, p.epoch) IN
                (SELECT * FROM unnest(sources, partitions, epochs))
          ORDER BY p.source, p.partition
          FOR SHARE OF p) AS locked;
    IF held < wanted THEN
        RAISE EXCEPTION 'fenced: % of % partitions of handler % belong to another host',
            wanted - held, wanted, handler USING ERRCODE = 'MT002';
    END IF;
END
$$;

-- Where every stored event stands with every handler that reads the store.
CREATE VIEW event_delivery_status AS
SELECT e.id::text AS event_id, e.seq, e.event_type, e.aggregate_type,
       e.aggregate_id::text AS aggregate_id, e.occurred_at,
       p.handler_name AS handler,
       CASE WHEN d.outcome IS NOT NULL THEN d.outcome
            WHEN i.event_id IS NOT NULL THEN 'done'
            WHEN e.seq <= p.seq AND NOT p.gaps @> e.seq THEN 'settled'
            ELSE 'waiting'
       END AS state,
       d.reason, d.attempts, coalesce(i.at, d.at) AS at
FROM domain_events AS e
JOIN event_handler_positions AS p ON p.source = 'outbox'
LEFT JOIN event_deliveries AS d ON d.handler = p.handler_name AND d.event_id = e.id::text
LEFT JOIN event_inbox AS i ON i.handler = p.handler_name AND i.event_id = e.id::text;

-- migrate:down
DROP VIEW event_delivery_status;
DROP FUNCTION moontide_fence(text, text[], text[], bigint[]);
DROP TABLE event_handler_versions, event_flags, event_dead_letters, event_deliveries,
    event_inbox, event_handler_positions;
DROP FUNCTION moontide_flags_changed();
