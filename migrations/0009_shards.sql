-- Several hosts share one outbox: it is cut into 64 shards by the aggregate's
-- id, and a host reads those that it holds a lease of.
--
-- The number of rows in event_shards and the function moontide_shard() are one
-- decision: they change together, with no host running, by a migration that
-- moves the positions as this one does.

-- migrate:up

-- RETURN, so that names are looked up now and not by the caller's search_path,
-- and the function is inlined where it is used.
CREATE FUNCTION moontide_shard(aggregate_id text) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (hashtextextended(coalesce(aggregate_id, '') COLLATE "C", 0) & 63)::int;

-- Who reads a shard, until when by the database's clock. `epoch` is the fencing
-- token: it rises with each owner, and what is written for a shard is written
-- only by who has the last one. '' is nobody.
CREATE TABLE event_shards (
    shard      int         PRIMARY KEY,
    owner      text        NOT NULL DEFAULT '',
    epoch      bigint      NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    since      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 25);

-- The hosts among which the shards are divided.
CREATE TABLE event_hosts (
    node       text        PRIMARY KEY,
    outbox     text        NOT NULL,
    since      timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 25);

-- Nobody writes positions meanwhile, and a host that still runs is fenced.
LOCK TABLE event_handler_positions IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO event_shards (shard, epoch)
SELECT n, (SELECT coalesce(max(epoch), 0) + 1 FROM event_handler_positions WHERE source = 'outbox')
FROM generate_series(0, 63) AS n;

-- Where a handler stood in the whole it stands in each part.
INSERT INTO event_handler_positions (handler_name, source, partition, source_id, seq, gaps,
                                     last_processed_id, last_processed_at, epoch)
SELECT p.handler_name, p.source, s.shard::text, p.source_id, p.seq, p.gaps,
       p.last_processed_id, p.last_processed_at, p.epoch
FROM event_handler_positions AS p CROSS JOIN event_shards AS s
WHERE p.source = 'outbox' AND p.partition = '0' AND s.shard > 0;
UPDATE event_handler_positions SET owner = '' WHERE source = 'outbox';

-- Does the caller's token still hold? Until its transaction ends nobody else
-- can take over then. KEY SHARE lets the owner renew its lease meanwhile; a
-- takeover locks FOR UPDATE.
CREATE FUNCTION moontide_holds(handler text, source text, partition text, epoch bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF source = 'outbox' THEN
        PERFORM 1 FROM event_shards AS s
        WHERE s.shard = moontide_holds.partition::int AND s.epoch = moontide_holds.epoch
        FOR KEY SHARE;
    ELSIF source = 'kafka' AND handler <> '' THEN
        PERFORM 1 FROM event_handler_positions AS p
        WHERE p.handler_name = handler AND p.source = moontide_holds.source
          AND p.partition = moontide_holds.partition AND p.epoch = moontide_holds.epoch
        FOR SHARE;
        -- The row of a handler that has just come may still be on its way;
        -- another owner would have made it.
        RETURN FOUND OR NOT EXISTS (
            SELECT 1 FROM event_handler_positions AS p
            WHERE p.handler_name = handler AND p.source = moontide_holds.source
              AND p.partition = moontide_holds.partition);
    ELSE -- dead letters that run again have no owner but their row's state, and
        RETURN true; -- what cannot be decoded is the same letter whoever stores it
    END IF;
    RETURN FOUND;
END
$$;

-- The last statement of every handler's transaction, as before; of the outbox
-- the shards are asked, so that no handler needs a row of its own to be fenced.
CREATE OR REPLACE FUNCTION moontide_fence(handler text, sources text[], partitions text[], epochs bigint[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted int;
    held   int;
BEGIN
    SELECT count(*) INTO wanted
    FROM (SELECT DISTINCT * FROM unnest(sources, partitions, epochs)) AS w;
    SELECT count(*) INTO held
    FROM (SELECT 1
          FROM event_shards AS s
          WHERE (s.shard::text, s.epoch) IN
                (SELECT w.partition, w.epoch
                 FROM unnest(sources, partitions, epochs) AS w (source, partition, epoch)
                 WHERE w.source = 'outbox')
          ORDER BY s.shard
          FOR KEY SHARE OF s) AS locked;
    IF held < wanted THEN
        SELECT held + count(*) INTO held
        FROM (SELECT 1
              FROM event_handler_positions AS p
              WHERE p.handler_name = moontide_fence.handler
                AND (p.source, p.partition, p.epoch) IN
                    (SELECT * FROM unnest(sources, partitions, epochs))
                AND p.source <> 'outbox'
              ORDER BY p.source, p.partition
              FOR SHARE OF p) AS locked;
    END IF;
    IF held < wanted THEN
        RAISE EXCEPTION 'fenced: % of % partitions of handler % belong to another host',
            wanted - held, wanted, handler USING ERRCODE = 'MT002';
    END IF;
END
$$;

-- For the reason that migration 0006 gives.
DO $$
DECLARE
    fn regprocedure;
BEGIN
    FOREACH fn IN ARRAY ARRAY['moontide_holds(text, text, text, bigint)'::regprocedure,
                              'moontide_fence(text, text[], text[], bigint[])']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', fn, current_schema());
    END LOOP;
END
$$;

-- One row for each event and handler, as it was, and an event at the position
-- itself is one that still waits.
CREATE OR REPLACE VIEW event_delivery_status AS
SELECT e.id::text AS event_id, e.seq, e.event_type, e.aggregate_type,
       e.aggregate_id::text AS aggregate_id, e.occurred_at,
       p.handler_name AS handler,
       CASE WHEN d.outcome IS NOT NULL THEN d.outcome
            WHEN i.event_id IS NOT NULL THEN 'done'
            WHEN e.seq < p.seq AND NOT p.gaps @> e.seq THEN 'settled'
            ELSE 'waiting'
       END AS state,
       d.reason, d.attempts, coalesce(i.at, d.at) AS at
FROM domain_events AS e
JOIN event_handler_positions AS p
    ON p.source = 'outbox' AND p.partition = moontide_shard(e.aggregate_id::text)::text
LEFT JOIN event_deliveries AS d ON d.handler = p.handler_name AND d.event_id = e.id::text
LEFT JOIN event_inbox AS i ON i.handler = p.handler_name AND i.event_id = e.id::text;

DELETE FROM moontide_meta WHERE key IN ('shards', 'shard_hash'); -- told nobody anything

DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON event_shards, event_hosts TO moontide_host;
    GRANT SELECT ON event_shards, event_hosts TO moontide_auditor;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE WARNING 'roles moontide_host and moontide_auditor not set up: %', SQLERRM;
END
$$;

-- migrate:down
LOCK TABLE event_handler_positions IN SHARE ROW EXCLUSIVE MODE;

-- One position for all: where the last shard stands. What others had beyond it
-- comes again, which the inbox knows.
CREATE TEMPORARY TABLE whole ON COMMIT DROP AS
SELECT handler_name, source, min(source_id) AS source_id, min(seq) AS seq,
       coalesce(range_agg(gap) FILTER (WHERE gap IS NOT NULL), '{}')
           * int8multirange(int8range(NULL, min(seq))) AS gaps,
       (SELECT max(epoch) + 1 FROM event_shards) AS epoch
FROM event_handler_positions LEFT JOIN LATERAL unnest(gaps) AS gap ON true
WHERE source = 'outbox' GROUP BY handler_name, source;
DELETE FROM event_handler_positions WHERE source = 'outbox';
INSERT INTO event_handler_positions (handler_name, source, partition, source_id, seq, gaps, epoch)
SELECT handler_name, source, '0', source_id, seq, gaps, epoch FROM whole;
DROP TABLE whole;

CREATE OR REPLACE VIEW event_delivery_status AS
SELECT e.id::text AS event_id, e.seq, e.event_type, e.aggregate_type,
       e.aggregate_id::text AS aggregate_id, e.occurred_at,
       p.handler_name AS handler,
       CASE WHEN d.outcome IS NOT NULL THEN d.outcome
            WHEN i.event_id IS NOT NULL THEN 'done'
            WHEN e.seq < p.seq AND NOT p.gaps @> e.seq THEN 'settled'
            ELSE 'waiting'
       END AS state,
       d.reason, d.attempts, coalesce(i.at, d.at) AS at
FROM domain_events AS e
JOIN event_handler_positions AS p ON p.source = 'outbox'
LEFT JOIN event_deliveries AS d ON d.handler = p.handler_name AND d.event_id = e.id::text
LEFT JOIN event_inbox AS i ON i.handler = p.handler_name AND i.event_id = e.id::text;

CREATE OR REPLACE FUNCTION moontide_fence(handler text, sources text[], partitions text[], epochs bigint[])
RETURNS void LANGUAGE plpgsql AS $$
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
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION moontide_fence(text, text[], text[], bigint[])'
                   ' SET search_path = %I, pg_temp', current_schema());
END
$$;

DROP FUNCTION moontide_holds(text, text, text, bigint);
DROP TABLE event_hosts, event_shards;
DROP FUNCTION moontide_shard(text);
