-- What outbox.wake needs, made by the table's owner where it is wanted:
--   SELECT moontide_outbox_wake('notify');   a trigger that sends a NOTIFY
--   SELECT moontide_outbox_wake('wal');      a publication for a logical slot
--   SELECT moontide_outbox_wake('poll');     neither of them (the default)

-- migrate:up
CREATE FUNCTION moontide_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('moontide_outbox', '');
    RETURN NULL;
END
$$;

CREATE FUNCTION moontide_outbox_wake(how text, outbox regclass DEFAULT 'domain_events')
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF how NOT IN ('poll', 'notify', 'wal') THEN
        RAISE EXCEPTION 'moontide_outbox_wake: % is not poll, notify or wal', how;
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS moontide_outbox_notify ON %s', outbox);
    DROP PUBLICATION IF EXISTS moontide_outbox;
    IF how = 'notify' THEN
        EXECUTE format('CREATE TRIGGER moontide_outbox_notify AFTER INSERT ON %s'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION moontide_outbox_notify()', outbox);
    ELSIF how = 'wal' THEN
        EXECUTE format('CREATE PUBLICATION moontide_outbox FOR TABLE %s'
                       ' WITH (publish = ''insert'', publish_via_partition_root = true)', outbox);
    END IF;
END
$$;

-- migrate:down
SELECT moontide_outbox_wake('poll');
DROP FUNCTION moontide_outbox_wake(text, regclass);
DROP FUNCTION moontide_outbox_notify();
