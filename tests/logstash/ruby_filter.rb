# Runs logstash/o365_ecs.rb without Logstash: lines of JSON requests on stdin, of documents on
# stdout. An event's stand-in has the part of the event API that the script uses, with Logstash's
# behaviour: hashes are copied in and out, decimals come as BigDecimal, a name that is no field
# reference raises.
#
#   ruby ruby_filter.rb SCRIPT           {"params": {...}, "line": "..."} per line
#   ruby ruby_filter.rb SCRIPT --test    runs the tests inside the script

require "bigdecimal"
require "json"

# JRuby 9.3's own JSON parser warns of its own way to make decimals.
$VERBOSE = nil if RUBY_ENGINE == "jruby"

module LogStash
  class Event
    def initialize(data = {})
      @data = { "@timestamp" => "2026-01-02T03:04:05.678Z", "@version" => "1" }
      @metadata = {}
      data.each { |key, value| @data[key] = copy(value) }
    end

    def get(name)
      path = parts(name)
      at = path[0] == "@metadata" ? @metadata : @data
      path.shift if path[0] == "@metadata"
      copy(path.inject(at) { |inner, key| inner.is_a?(Hash) ? inner[key] : nil })
    end

    def set(name, value)
      *parents, last = parts(name)
      at = parents[0] == "@metadata" || last == "@metadata" ? @metadata : @data
      parents.shift if parents[0] == "@metadata"
      parents.each { |key| at = (at[key] ||= {}) }
      at[last] = copy(value)
    end

    def remove(name)
      *parents, last = parts(name)
      at = parents.inject(@data) { |inner, key| inner.is_a?(Hash) ? inner[key] : nil }
      at.is_a?(Hash) ? at.delete(last) : nil
    end

    def to_hash
      copy(@data)
    end

    def tag(name)
      @data["tags"] = (Array(@data["tags"]) + [name]).uniq
    end

    def metadata
      copy(@metadata)
    end

    private

    def parts(name)
      return [name] unless name.match?(/[\[\]]/)
      raise ArgumentError, "Invalid FieldReference: `#{name}`" unless name.match?(/\A(\[[^\[\],]+\])+\z/)

      name.scan(/\[([^\]]+)\]/).flatten
    end

    # What Logstash's Valuefier takes; anything else is an error there too.
    def copy(value)
      case value
      when Hash then value.each_with_object({}) { |(key, inner), found| found[String.new(key)] = copy(inner) }
      when Array then value.map { |inner| copy(inner) }
      when String then value.dup
      when Integer, Float, BigDecimal, true, false, nil then value
      else raise ArgumentError, "Missing Valuefier handling for full class name=#{value.class}"
      end
    end
  end
end

# What the ruby filter's script context offers: the script's methods, and `test` blocks.
class ScriptContext
  attr_reader :tests

  def initialize(path)
    @tests = []
    instance_eval(File.read(path, :encoding => "UTF-8"), path, 1)
  end

  def test(name, &block)
    @tests << [name, TestBlock.new(&block)]
  end
end

class TestBlock
  attr_reader :events, :expectations

  def initialize(&block)
    @events = []
    @expectations = []
    instance_eval(&block)
  end

  def parameters(&block)
    @parameters = block
  end

  def in_event(&block)
    @events << block.call
  end

  def expect(name, &block)
    @expectations << [name, block]
  end

  def given
    @parameters ? @parameters.call : {}
  end
end

def run_tests(path)
  failed = 0
  ScriptContext.new(path).tests.each do |name, block|
    block.expectations.each do |expectation, check|
      context = ScriptContext.new(path)
      context.register(block.given)
      results = block.events.flat_map { |data| context.filter(LogStash::Event.new(data)) }
      ok = check.call(results)
      failed += 1 unless ok
      puts "#{ok ? 'ok' : 'FAILED'} #{name}: #{expectation}"
    end
  end
  exit(failed.zero? ? 0 : 1)
end

# Half of a surrogate pair becomes "?" where Java makes UTF-8 of it; Ruby's parser refuses it.
HALF_PAIR = /\\ud[89ab]\h\h(?!\\ud[c-f]\h\h)|(?<!\\ud[89ab]\h\h)\\ud[c-f]\h\h/i.freeze

# As the codec: the object under its target, or the text in `message` and a tag.
def codec(line)
  parsed = JSON.parse(line.gsub(HALF_PAIR, "?"), :max_nesting => 1000, :decimal_class => BigDecimal)
  raise JSON::ParserError, "no object" unless parsed.is_a?(Hash)

  LogStash::Event.new("o365_line" => parsed)
rescue JSON::ParserError
  LogStash::Event.new("message" => line, "tags" => ["_jsonparsefailure"])
end

# The split filter's part of the pipeline.
def split(event)
  parts = event.get("[o365_poller][part]")
  return [event.to_hash] unless parts.is_a?(Array)

  parts.map { |part| event.to_hash.tap { |hash| hash["o365_poller"]["part"] = part } }
end

script = ARGV[0]
run_tests(script) if ARGV[1] == "--test"
contexts = {}
$stdin.set_encoding("UTF-8")
$stdin.each_line do |request|
  request = JSON.parse(request, :max_nesting => 2000)
  params = request["params"] || {}
  context = contexts[params] ||= ScriptContext.new(script).tap { |made| made.register(params) }
  event = request["event"] ? LogStash::Event.new(request["event"]) : codec(request["line"])
  (request["metadata"] || {}).each { |key, value| event.set("[@metadata][#{key}]", value) }
  results = context.filter(event)
  raise "filter gave no list of events" unless results.is_a?(Array)

  answer = results.map { |result| { "documents" => split(result), "metadata" => result.metadata["o365"] } }
  puts JSON.generate(answer, :max_nesting => 0)
  $stdout.flush
end
