-- The store of domain events: append-only, one partition a month, read in the
-- order of seq by a cursor that knows gaps.
--
-- Two rules of that cursor are in the columns. xid stands before seq, so that
-- a transaction has its xid before its number; and seq comes from its default
-- only, from a sequence without cache.

-- migrate:up
CREATE SEQUENCE domain_events_seq AS bigint INCREMENT 1 CACHE 1 NO CYCLE;

CREATE TABLE domain_events (
    id                :ids:        NOT NULL DEFAULT CAST(gen_random_uuid() AS :ids:),
    aggregate_id      :ids:        NOT NULL,
    aggregate_type    varchar(100) NOT NULL,
    event_type        varchar(100) NOT NULL,
    event_version     int          NOT NULL DEFAULT 1,
    event_data        jsonb        NOT NULL,
    metadata          jsonb        NOT NULL DEFAULT '{}',
    occurred_at       timestamptz  NOT NULL,
    created_at        timestamptz  NOT NULL DEFAULT now(),
    aggregate_version bigint,
    xid               xid8         NOT NULL DEFAULT pg_current_xact_id(),
    seq               bigint       NOT NULL DEFAULT nextval('domain_events_seq'),
    PRIMARY KEY (occurred_at, id)
) PARTITION BY RANGE (occurred_at);

ALTER SEQUENCE domain_events_seq OWNED BY domain_events.seq;

CREATE INDEX idx_events_aggregate ON domain_events (aggregate_id, event_version);
CREATE INDEX idx_events_type_time ON domain_events (event_type, occurred_at);
CREATE INDEX idx_events_occurred  ON domain_events (occurred_at);
CREATE INDEX idx_events_seq       ON domain_events (seq) INCLUDE (xid);

-- A date without a partition of its own must not fail somebody's order.
CREATE TABLE domain_events_default PARTITION OF domain_events DEFAULT;

CREATE FUNCTION moontide_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: it is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'MT003';
END
$$;

-- The row trigger reaches every partition by itself; the one for TRUNCATE does
-- not, so moontide_create_partitions() gives it to each.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON domain_events
    FOR EACH ROW EXECUTE FUNCTION moontide_append_only();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON domain_events
    FOR EACH STATEMENT EXECUTE FUNCTION moontide_append_only();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON domain_events_default
    FOR EACH STATEMENT EXECUTE FUNCTION moontide_append_only();

-- Partitions for this month and `ahead` more, by UTC. Returns how many are new.
-- A month of which the default partition already holds rows is left to it.
CREATE FUNCTION moontide_create_partitions(ahead int DEFAULT 3) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    first timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    month timestamp;
    part  text;
    made  int := 0;
BEGIN
    FOR i IN 0..ahead LOOP
        month := first + make_interval(months => i);
        part := 'domain_events_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass(quote_ident(part)) IS NOT NULL;
        BEGIN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF domain_events FOR VALUES FROM (%L) TO (%L)',
                part, month || '+00', month + interval '1 month' || '+00');
            EXECUTE format(
                'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I '
                'FOR EACH STATEMENT EXECUTE FUNCTION moontide_append_only()', part);
            made := made + 1;
        EXCEPTION WHEN check_violation THEN
            RAISE WARNING 'no partition %: the default partition holds rows of it', part;
        END;
    END LOOP;
    RETURN made;
END
$$;
REVOKE ALL ON FUNCTION moontide_create_partitions(int) FROM PUBLIC;

SELECT moontide_create_partitions(3);

-- migrate:down
DROP TABLE domain_events;
DROP FUNCTION moontide_create_partitions(int);
DROP FUNCTION moontide_append_only();
