#!lua flags=allow-oom
-- Take partitions: our token in each voids every late script of the owner before. Runs on a full server too: only a new
-- owner can publish the outbox and so free it.
-- ARGV: token, digest of the configuration, incarnation to create ('' = must be there), declared features ('' = not
-- stated), then the partitions' names.
local prefix = KEYS[1]
-- guard: configuration
local digest = redis.call('GET', prefix .. 'config')
if digest and digest ~= ARGV[2] then
  return {'other configuration', digest}
end
-- end guard
local incarnation = redis.call('GET', prefix .. 'incarnation')
-- guard: unfinished
if not incarnation and redis.call('EXISTS', prefix .. 'unfinished') == 1 then
  return {'unfinished'} -- somebody empties or restores it, or was stopped on the way
end
-- end guard
if not incarnation and ARGV[3] == '' then
  return {'lost'}
end
if not incarnation then
  incarnation = ARGV[3]
  redis.call('SET', prefix .. 'incarnation', incarnation)
end
redis.call('SET', prefix .. 'config', ARGV[2])
redis.call('DEL', prefix .. 'filling') -- what a fill of features saw no longer holds
if ARGV[4] ~= '' then
  redis.call('SET', prefix .. 'features', ARGV[4])
end
local found = {}
for at = 5, #ARGV do
  local name = ARGV[at]
  redis.call('SADD', prefix .. 'partitions', name)
  local key = prefix .. 'p:' .. name
  local record = redis.call('HMGET', key, 'applied', 'committed', 'fresh', 'owner', 'tried_at', 'tried', 'sequel')
  -- How often it was claimed at this position. Any progress makes it another position, so no commit has to clear it.
  local tried = 1
  if record[5] == (record[1] or '') then
    tried = tonumber(record[6]) + 1
  elseif record[4] and string.match(record[4], '^[^:]*') ~= string.match(ARGV[1], '^[^:]*') then
    tried = 2 -- a living owner would have given it back
  end
  redis.call('HSET', key, 'owner', ARGV[1], 'tried_at', record[1] or '', 'tried', tried)
  -- A start that was recorded and not used yet is not progress: the claim decides again.
  local applied = not record[3] and record[1] or ''
  found[#found + 1] = {name, applied, record[2] or '', redis.call('HGETALL', prefix .. 'o:' .. name), tried, record[7] or ''}
end
return {'claimed', incarnation, redis.call('SMEMBERS', prefix .. 'lineage'), found}
