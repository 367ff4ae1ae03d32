-- A database can go back in time: a failover to a standby that lacked commits, a
-- restore. What a host has in memory then is of a history that did not happen.
-- So a lease of a shard is bound to the database's timeline, which every
-- promotion changes; and when events that were read are gone, all hosts stop
-- until an operator says to go on.

-- migrate:up

-- Of the WAL that is written now; the control file has it only after the first
-- checkpoint that follows a promotion.
CREATE FUNCTION moontide_timeline() RETURNS text LANGUAGE sql STABLE
RETURN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);

-- NULL: taken by a moontide that did not know of it.
ALTER TABLE event_shards ADD COLUMN timeline text;

CREATE TABLE event_source_trouble (
    source     text        PRIMARY KEY, -- outbox
    trouble    text        NOT NULL,
    ends_at    bigint      NOT NULL, -- the last number given when it was seen
    first_lost bigint,               -- of what was read and is gone
    last_lost  bigint,
    node       text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION moontide_holds(handler text, source text, partition text, epoch bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF source = 'outbox' THEN
        PERFORM 1 FROM event_shards AS s
        WHERE s.shard = moontide_holds.partition::int AND s.epoch = moontide_holds.epoch
          AND coalesce(s.timeline = moontide_timeline(), true)
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
            AND coalesce(s.timeline = moontide_timeline(), true)
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

-- An operator's word that the outbox goes on, after which every host takes its
-- shards and the stored positions anew. `latest`: what is in the table now is
-- given up; else it goes on where the handlers stand, but not behind a number
-- that was lost, for others have it now, nor beyond what the table held then.
CREATE FUNCTION moontide_outbox_move(outbox regclass, latest boolean, reason text, who text)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    halt   event_source_trouble;
    most   bigint;
    system text := (SELECT system_identifier::text FROM pg_control_system());
    ending bigint;
    moved  json;
BEGIN
    -- After this nothing of any host is under way, and what it sends is refused.
    PERFORM 1 FROM event_shards ORDER BY shard FOR UPDATE;
    UPDATE event_shards SET owner = '', epoch = epoch + 1, expires_at = '-infinity';
    DELETE FROM event_source_trouble WHERE source = 'outbox' RETURNING * INTO halt;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the outbox has no trouble' USING ERRCODE = 'MT004';
    END IF;
    most := least(halt.ends_at + 1, halt.first_lost);
    UPDATE event_handler_positions AS p
    SET source_id = system, seq = least(p.seq, most), updated_at = now(),
        gaps = p.gaps * int8multirange(int8range(NULL, least(p.seq, most)))
    WHERE p.source = 'outbox' AND p.seq < 9223372036854775806; -- "latest", not read yet
    INSERT INTO event_given_up (handler, source, partition, source_id, first_place, last_place,
                                trouble, reason, who)
    SELECT '*', 'outbox', '*', system, halt.first_lost, halt.last_lost, halt.trouble,
           moontide_outbox_move.reason, moontide_outbox_move.who
    WHERE halt.first_lost IS NOT NULL;
    IF latest THEN
        EXECUTE format('SELECT coalesce(max(seq), 0) FROM %s', outbox) INTO ending;
        INSERT INTO event_given_up (handler, source, partition, source_id, first_place, last_place,
                                    trouble, reason, who)
        SELECT p.handler_name, 'outbox', p.partition, system, lower(r), upper(r) - 1,
               halt.trouble, moontide_outbox_move.reason, moontide_outbox_move.who
        FROM event_handler_positions AS p CROSS JOIN LATERAL
             unnest(p.gaps + int8multirange(int8range(p.seq, greatest(p.seq, ending + 1)))) AS r
        WHERE p.source = 'outbox';
        UPDATE event_handler_positions AS p SET seq = greatest(p.seq, ending + 1), gaps = '{}'
        WHERE p.source = 'outbox';
    END IF;
    SELECT json_build_object(
        'partition', 'outbox',
        'next', (SELECT min(seq) FROM event_handler_positions WHERE event_handler_positions.source = 'outbox'),
        'givenUp', coalesce((
            SELECT json_agg(json_build_object('handler', handler, 'first', first, 'last', last))
            FROM (SELECT handler, min(first_place) AS first, max(last_place) AS last
                  FROM event_given_up AS g WHERE g.source = 'outbox' AND g.at = now()
                  GROUP BY handler ORDER BY handler) AS lost), '[]'))
    INTO moved;
    RETURN moved;
END
$$;

-- For the reason that migration 0006 gives.
DO $$
DECLARE
    fn regprocedure;
BEGIN
    FOREACH fn IN ARRAY ARRAY['moontide_holds(text, text, text, bigint)'::regprocedure,
                              'moontide_fence(text, text[], text[], bigint[])',
                              'moontide_outbox_move(regclass, boolean, text, text)']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', fn, current_schema());
    END LOOP;
END
$$;

DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON event_source_trouble TO moontide_host;
    GRANT SELECT ON event_source_trouble TO moontide_auditor;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE WARNING 'rights on event_source_trouble not granted: %', SQLERRM;
END
$$;

-- migrate:down
DROP FUNCTION moontide_outbox_move(regclass, boolean, text, text);

CREATE OR REPLACE FUNCTION moontide_holds(handler text, source text, partition text, epoch bigint)
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

DROP TABLE event_source_trouble;
ALTER TABLE event_shards DROP COLUMN timeline;
DROP FUNCTION moontide_timeline();
