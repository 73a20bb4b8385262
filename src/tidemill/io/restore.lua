#!lua
-- Put a cut into an empty store. Until `finish` no worker can claim; whoever begins first restores, and one that died is
-- replaced once its lifetime is over. ARGV: step, token of the restore, its lifetime in ms, then what the step takes.
local prefix, step, token, lifetime = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local restoring, unfinished = prefix .. 'restoring', prefix .. 'unfinished'
if step == 'begin' then
  if call('EXISTS', restoring) == 1 then
    return {'busy'}
  end
  if call('EXISTS', prefix .. 'incarnation') == 1 then
    return {'not empty', 'incarnation'}
  end
  local is_left = call('EXISTS', unfinished) == 1 -- by who was stopped while he emptied or restored
  for _, name in ipairs(call('SMEMBERS', prefix .. 'partitions')) do
    if not is_left and call('HEXISTS', prefix .. 'p:' .. name, 'applied') == 1 then
      return {'not empty', name}
    end
  end
  call('SET', restoring, token, 'PX', lifetime)
  call('SET', unfinished, '1')
  return {'begun'}
end
-- guard: restoring
if call('GET', restoring) ~= token then
  return {'interrupted'}
end
-- end guard
call('PEXPIRE', restoring, lifetime)
if step == 'delete' then -- keys: what an interrupted restore left
  call('UNLINK', unpack(ARGV, 4))
elseif step == 'state' then -- (key, value) and again
  call('MSET', unpack(ARGV, 4))
elseif step == 'due' then -- partition, then (time, id) and again
  call('ZADD', prefix .. 'due:' .. ARGV[4], unpack(ARGV, 5))
else -- finish: incarnation, configuration, features, where the logs stood, number of earlier ones, these; then by
  -- partition: name, number of fields, (field, value)s, number of slices, (field, slice)s
  local at = 8
  local function count()
    local found = tonumber(ARGV[at])
    at = at + 1
    return found
  end
  for _ = 1, count() do
    call('SADD', prefix .. 'lineage', ARGV[at])
    at = at + 1
  end
  while at <= #ARGV do
    local name = ARGV[at]
    at = at + 1
    call('SADD', prefix .. 'partitions', name)
    for _, kind in ipairs({'p:', 'o:'}) do
      local words = 2 * count()
      if words > 0 then
        call('HSET', prefix .. kind .. name, unpack(ARGV, at, at + words - 1))
      end
      at = at + words
    end
  end
  call('SET', prefix .. 'incarnation', ARGV[4])
  call('SET', prefix .. 'config', ARGV[5])
  if ARGV[6] ~= '' then
    call('SET', prefix .. 'features', ARGV[6])
  end
  call('SET', prefix .. 'restored', ARGV[7])
  call('DEL', unfinished, restoring)
end
return {'restored'}
