#!lua
-- One commit: every check before the first write, so it applies as a whole or not at all.
-- No flag `allow-oom`: a server over `maxmemory` refuses the script before it begins, and one that is below it lets all
-- of its writes through. KEYS[1] is the app's prefix; ARGV is built by `commit_arguments.py`, in the order read here.
local prefix = KEYS[1]
local incarnation, token = ARGV[1], ARGV[2]
local call, unpack_words, pack_words, sub = redis.call, struct.unpack, struct.pack, string.sub
local at = 3
local CHUNK = 2000 -- arguments per call; Lua's stack takes 8,000

local function count()
  local found = tonumber(ARGV[at])
  at = at + 1
  return found
end

-- Gives `total` arguments, from `at` on, to one command in chunks.
local function each_chunk(total, command, key)
  local last = at + total - 1
  while at <= last do
    local stop = math.min(at + CHUNK - 1, last)
    if key then
      call(command, key, unpack(ARGV, at, stop))
    else
      call(command, unpack(ARGV, at, stop))
    end
    at = stop + 1
  end
end

-- guard: incarnation
local found_incarnation = call('GET', prefix .. 'incarnation') or ''
if found_incarnation ~= incarnation then
  return {'fenced', 'incarnation', '', incarnation, found_incarnation}
end
-- end guard

local spans = {}
for i = 1, count() do
  local name = ARGV[at]
  local record = call('HMGET', prefix .. 'p:' .. name, 'owner', 'applied', 'committed', 'watermark')
  -- guard: owner
  if record[1] ~= token then
    return {'fenced', 'owner', name, token, record[1] or ''}
  end
  -- end guard
  -- guard: position
  if record[2] ~= ARGV[at + 1] then
    return {'fenced', 'position', name, ARGV[at + 1], record[2] or ''}
  end
  -- end guard
  spans[i] = {
    name = name, start = ARGV[at + 1], next = ARGV[at + 2], watermark = ARGV[at + 3], lagging = ARGV[at + 4],
    slice = ARGV[at + 5], committed = tonumber(record[3] or '-1'), seen = tonumber(record[4] or '-1'),
  }
  at = at + 6
end

local read_count = count()
local revisions = ARGV[at]
at = at + 1
-- guard: read set
local absent = string.rep('\0', 8)
local contested = {'conflict'}
for first = 0, read_count - 1, CHUNK do
  local rows = call('MGET', unpack(ARGV, at + first, at + math.min(first + CHUNK, read_count) - 1))
  for i, row in ipairs(rows) do
    local place = (first + i - 1) * 8
    if (row and sub(row, 1, 8) or absent) ~= sub(revisions, place + 1, place + 8) then
      contested[#contested + 1] = first + i - 1
    end
  end
end
if #contested > 1 then
  return contested
end
-- end guard
at = at + read_count

-- From here on only writes. While a cut is taken (cut.lua), the first change of a key keeps what it was.
local kept = call('GET', prefix .. 'cut') and prefix .. 'cut:kept'
local function keep(key)
  if kept and call('HEXISTS', kept, key) == 0 then
    local value = call('GET', key)
    call('HSET', kept, key, value and '1' .. value or '0')
  end
end

local function keep_each(total, step)
  if kept then
    for place = at, at + total - 1, step do
      keep(ARGV[place])
    end
  end
end

local written = 2 * count()
keep_each(written, 2)
each_chunk(written, 'MSET')
local deleted = count()
keep_each(deleted, 1)
each_chunk(deleted, 'DEL')
for _ = 1, count() do
  local key = prefix .. 'due:' .. ARGV[at]
  at = at + 1
  each_chunk(count(), 'ZREM', key)
end
for _ = 1, count() do
  local key = prefix .. 'due:' .. ARGV[at]
  at = at + 1
  each_chunk(2 * count(), 'ZADD', key)
end

-- Panes: the deltas of an entity are sorted by word and have equally many cells. The bytes from the first slot to the last
-- one are read once; slots that lie close together are written together. Most deltas have two cells that add up (a count
-- and a sum): those are spelled out. A shape of 65536 and more: the cells take the maximum.
local GAP = 96 -- bytes; a write of its own costs the append-only file about as many

local function read_words(key, low, high)
  local state = call('GETRANGE', key, low * 8, high * 8 - 1)
  local missing = (high - low) * 8 - #state
  return missing > 0 and state .. string.rep('\0', missing) or state
end

for _ = 1, count() do
  local key, deltas = ARGV[at], ARGV[at + 1]
  at = at + 2
  keep(key)
  local low, high, cells = unpack_words('>I4I4I4', deltas)
  local takes_max = cells >= 65536
  if takes_max then
    cells = cells - 65536
  end
  local is_pair = cells == 2 and not takes_max
  local width, stop, p = cells * 8 + 8, #deltas, 13
  local state = read_words(key, low, high)
  local run, last, start, done = {}, 0, 1, 1 -- pieces of state [start, done) that wait for their write
  while p <= stop do
    local word, tag, b, d = unpack_words(is_pair and '>I4i8i8i8' or '>I4i8', deltas, p)
    local first = (word - low) * 8 + 1
    if last > 0 and (first < done or first - done > GAP) then
      call('SETRANGE', key, low * 8 + start - 1, last == 1 and run[1] or table.concat(run, '', 1, last))
      last = 0
      if first < done then -- the same slot again, by another tag
        state = read_words(key, low, high)
      end
    end
    local stored, a, c = unpack_words(is_pair and '>i8i8i8' or '>i8', state, first)
    if tag >= stored then
      if last == 0 then
        start = first
      elseif first > done then
        last = last + 1
        run[last] = sub(state, done, first - 1)
      end
      last = last + 1
      done = first + width
      if tag > stored then
        run[last] = sub(deltas, p + 4, p + 3 + width)
      elseif is_pair then
        run[last] = pack_words('>i8i8i8', tag, a + b, c + d)
      else
        local layout = '>i8' .. string.rep('i8', cells)
        local old, new = {unpack_words(layout, state, first)}, {unpack_words(layout, deltas, p + 4)}
        for i = 2, cells + 1 do
          old[i] = takes_max and math.max(old[i], new[i]) or old[i] + new[i]
        end
        run[last] = pack_words(layout, unpack(old, 1, cells + 1))
      end
    end
    p = p + 4 + width
  end
  if last > 0 then
    call('SETRANGE', key, low * 8 + start - 1, last == 1 and run[1] or table.concat(run, '', 1, last))
  end
end

-- Latest entries: newest first by their first four words, one entry per record, at most `capacity`.
for _ = 1, count() do
  local key, capacity, width, added = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
  at = at + 4
  keep(key)
  local state = call('GET', key) or ''
  local entries = {}
  for place = 1, #state, width do
    entries[#entries + 1] = {sub(state, place, place + width - 1), unpack_words('>i8i8i8i8', state, place)}
  end
  for place = 1, #added, width do
    local new = {sub(added, place, place + width - 1), unpack_words('>i8i8i8i8', added, place)}
    local target, is_known = #entries + 1, false
    for i, old in ipairs(entries) do
      local word = 2
      while word <= 5 and old[word] == new[word] do
        word = word + 1
      end
      if word > 5 then
        is_known = true
        break
      elseif new[word] > old[word] then
        target = i
        break
      end
    end
    if not is_known then
      table.insert(entries, target, new)
      entries[capacity + 1] = nil
    end
  end
  local bytes = {}
  for i, entry in ipairs(entries) do
    bytes[i] = entry[1]
  end
  call('SET', key, table.concat(bytes))
end

for _, span in ipairs(spans) do
  local record, outbox = prefix .. 'p:' .. span.name, prefix .. 'o:' .. span.name
  call('HSET', record, 'applied', span.next)
  if span.watermark ~= '' then
    call('HSET', record, 'lagging', span.lagging)
    if tonumber(span.watermark) > span.seen then
      call('HSET', record, 'watermark', span.watermark)
    end
  end
  for _, field in ipairs(call('HKEYS', outbox)) do
    -- "next", or "next:n" for a commit without records, whose offset does not show that it was published.
    local next_, sequel = string.match(field, '^(%d+)(:?)')
    if tonumber(next_) < span.committed or (sequel == '' and tonumber(next_) == span.committed) then
      call('HDEL', outbox, field)
    end
  end
  if span.slice ~= '' then
    local field = span.next
    if span.start == span.next then
      local sequel = 1
      while call('HEXISTS', outbox, field .. ':' .. sequel) == 1 do
        sequel = sequel + 1
      end
      field = field .. ':' .. sequel
      call('HSET', record, 'sequel', string.sub(redis.sha1hex(sub(span.slice, 9)), 1, 16))
    end
    call('HSET', outbox, field, span.slice)
    call('HDEL', record, 'fresh')
  end
end
return {'applied'}
