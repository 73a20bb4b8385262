#!lua
-- Record where a partition that has no progress begins. ARGV: incarnation, token, partition, offset.
local prefix, name = KEYS[1], ARGV[3]
local record = prefix .. 'p:' .. name
-- guard: incarnation
local incarnation = redis.call('GET', prefix .. 'incarnation') or ''
if incarnation ~= ARGV[1] then
  return {'fenced', 'incarnation', '', ARGV[1], incarnation}
end
-- end guard
local found = redis.call('HMGET', record, 'owner', 'applied', 'fresh')
-- guard: owner
if found[1] ~= ARGV[2] then
  return {'fenced', 'owner', name, ARGV[2], found[1] or ''}
end
-- end guard
-- guard: position
if found[2] and not found[3] then
  return {'fenced', 'position', name, '', found[2]}
end
-- end guard
redis.call('HSET', record, 'applied', ARGV[4], 'committed', ARGV[4], 'fresh', '1', 'tried_at', ARGV[4])
return {'applied'}
